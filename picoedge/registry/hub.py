"""Models of a Hugging Face hub by repository, OWNER/REPO[:QUANT]: which files, and their hashes.

    name = parse_hub_name("hf:Qwen/Qwen3-4B-GGUF:Q4_K_M")
    choice = choose_files(name, parse_listing(page))     # the page is of /api/models/REPO/tree/main

A hub lists each file with its size and a hash: large files with the SHA-256 of their content,
others with their Git blob's SHA-1. A fetched file is checked by it, and a file that is listed
without one is not fetched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from picoedge.errors import DownloadError, UsageError
from picoedge.fields import Fields

PREFIX = "hf:"
MAX_FILES = 1 << 16
_MAX_BYTES = 1 << 42
_NAME = re.compile(r"(?:hf:)?([\w][\w-]{0,95})/([\w][\w.-]{0,95})(?::([\w.-]{1,40}))?", re.ASCII)
_PATH = re.compile(r"[^\\\x00-\x1f\x7f]{1,400}")
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_NOT_A_MODEL = re.compile(r"mmproj|imatrix|adapter|lora|draft|vocab", re.IGNORECASE)
# The first that a repository has is taken where none is named: small, and hardly worse than 8 bits.
QUANTS = (
    "Q4_K_M", "Q4_0", "Q4_K_S", "Q4_K_XL", "IQ4_NL", "IQ4_XS", "Q4_1", "Q5_K_M", "Q5_K_S", "Q5_0",
    "Q6_K", "Q8_0", "Q3_K_M", "Q2_K", "BF16", "F16", "F32",
)  # fmt: skip
_FOLDER_FILES = re.compile(
    r"config\.json|generation_config\.json|tokenizer[\w.-]*|special_tokens_map\.json|"
    r"added_tokens\.json|vocab\.json|merges\.txt|chat_template\.(jinja|json)|"
    r"model[\w-]*\.safetensors|model\.safetensors\.index\.json"
)
_TOKENIZERS = ({"tokenizer.json"}, {"tokenizer.model"}, {"vocab.json", "merges.txt"})
_FOLDER_SHARE = 0.6  # of a pack, in the bytes of its folder
FLOATS = "floats"  # label of a repository's own weights, without a GGUF


@dataclass(frozen=True)
class HubName:
    """A repository, and the quantization that is wanted ("": the usual)."""

    repo: str
    quant: str = ""

    @property
    def stem(self) -> str:
        """The shelf's name, without the quantization: "qwen.qwen3-4b-gguf"."""
        text = self.repo.lower().replace("/", ".", 1)
        if len(text) > 58:  # of the 80 that a name may have
            import hashlib

            text = f"{text[:48]}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
        return text.lstrip("._-")

    def shelf_name(self, label: str) -> str:
        """The shelf's name of one quantization: "qwen.qwen3-4b-gguf.q4_k_m"."""
        return f"{self.stem}.{label.lower()[:20]}"

    def __str__(self) -> str:
        return f"{self.repo}:{self.quant}" if self.quant else self.repo


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, with the hash of the hub's own record."""

    path: str
    n_bytes: int
    sha256: str = ""
    git_sha1: str = ""  # of "blob SIZE\\0" and the content

    @property
    def is_weights(self) -> bool:
        """Whether it holds weights, as few files and nearly all bytes of a folder do."""
        return self.path.endswith((".safetensors", ".gguf"))


@dataclass(frozen=True)
class HubChoice:
    """The files of one model: a GGUF (perhaps in parts), or all files of a folder (`is_folder`)."""

    name: HubName
    label: str  # "Q4_K_M", or FLOATS
    files: tuple[HubFile, ...]
    is_folder: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.n_bytes for file in self.files)

    @property
    def pack_bytes(self) -> int:
        """About the bytes of its pack: a quantized GGUF's stay, floats of 16 bits become 8."""
        return int(_FOLDER_SHARE * self.n_bytes) if self.is_folder else self.n_bytes


def is_hub_name(model: str) -> bool:
    """Whether MODEL names a repository."""
    return model.startswith(PREFIX)


def parse_hub_name(text: str) -> HubName:
    """A repository as people write it, with or without `hf:`. Raises UsageError."""
    match = _NAME.fullmatch(text)
    if match is None or ".." in text:
        raise UsageError(
            f"not a repository: {text[:200]!r}", "write OWNER/REPO or OWNER/REPO:QUANT"
        )
    return HubName(f"{match[1]}/{match[2]}", match[3] or "")


def parse_listing(page: Any, where: str) -> list[HubFile]:
    """The files in one page of a hub's listing. Raises DownloadError where it is none."""
    entries = Fields({"files": page}, where, DownloadError, "the hub answered something else")
    found = []
    for entry in entries.objects("files", MAX_FILES):
        if entry.values.get("type") != "file":
            continue
        path = entry.text("path", 400, _PATH, "a path")
        if path.startswith("/") or ".." in path.split("/"):
            raise entry.fault("path", "a path within the repository")
        found.append(_file(entry, path))
    return found


def _file(entry: Fields, path: str) -> HubFile:
    size = entry.integer("size", 0, _MAX_BYTES)
    if entry.values.get("lfs") is not None:
        large = entry.object("lfs")
        digest = large.text("oid", 71).removeprefix("sha256:")
        if not _SHA256.fullmatch(digest):
            raise large.fault("oid", "a SHA-256")
        return HubFile(path, large.integer("size", 0, _MAX_BYTES), sha256=digest)
    blob = entry.values.get("oid")
    known = isinstance(blob, str) and _SHA1.fullmatch(blob)
    return HubFile(path, size, git_sha1=str(blob) if known else "")


def choose_files(name: HubName, files: Sequence[HubFile]) -> HubChoice:
    """The files of the model that is wanted. Raises DownloadError naming what there is instead."""
    models = _ggufs(files)
    if not models:
        return _folder(name, files)
    labels = {stem: _label(stem) for stem in models}
    for quant in (name.quant,) if name.quant else QUANTS:
        fitting = [stem for stem in models if _has(stem, quant)]
        if fitting:
            stem = min(fitting, key=lambda s: (s.count("/"), len(s), s))
            return _checked(HubChoice(name, quant.upper(), models[stem]))
    if not name.quant and len(models) == 1:
        (stem,) = models
        return _checked(HubChoice(name, labels[stem] or "gguf", models[stem]))
    known = sorted({label for label in labels.values() if label}) or sorted(models)
    wanted = f"no {name.quant}" if name.quant else "several models"
    raise DownloadError(
        f"{name.repo} has {wanted}", f"it has {', '.join(known[:12])}: {name.repo}:{known[0]}"
    )


def _ggufs(files: Sequence[HubFile]) -> dict[str, tuple[HubFile, ...]]:
    """Models of a repository: path without ending and part number, to its parts in order."""
    found: dict[str, list[HubFile]] = {}
    for file in files:
        if file.path.lower().endswith(".gguf") and not _NOT_A_MODEL.search(file.path):
            found.setdefault(_PART.sub("", file.path[:-5]), []).append(file)
    return {stem: tuple(sorted(parts, key=lambda f: f.path)) for stem, parts in found.items()}


def _has(stem: str, quant: str) -> bool:
    """Whether a file's name (or its folder's) has this quantization as a word of its own."""
    pattern = rf"(?:^|[-._/]){re.escape(quant)}(?:$|[-._/])"
    return re.search(pattern, stem, re.IGNORECASE) is not None


def _label(stem: str) -> str:
    return next((quant for quant in QUANTS if _has(stem, quant)), "")


def _folder(name: HubName, files: Sequence[HubFile]) -> HubChoice:
    """The weights in floats and what belongs to them."""
    wanted = tuple(file for file in files if _FOLDER_FILES.fullmatch(file.path))
    names = {file.path for file in wanted}
    if "config.json" not in names or not any(p.endswith(".safetensors") for p in names):
        raise DownloadError(
            f"{name.repo} has neither a GGUF nor safetensors", "look for a repository with GGUFs"
        )
    if not any(needed <= names for needed in _TOKENIZERS):
        raise DownloadError(
            f"{name.repo} has no tokenizer in a file that picoedge reads",
            "look for a repository with GGUFs, or with tokenizer.json",
        )
    if name.quant:
        raise DownloadError(
            f"{name.repo} has no GGUF, and so no {name.quant}",
            f"look for {name.repo}-GGUF, or take its own weights: {name.repo}",
        )
    return _checked(HubChoice(name, FLOATS, wanted, is_folder=True))


def _checked(choice: HubChoice) -> HubChoice:
    for file in choice.files:
        if not file.sha256 and not file.git_sha1:
            raise DownloadError(
                f"{choice.name.repo} lists {file.path} without a hash", "it cannot be checked"
            )
    parts = [match for file in choice.files if (match := _PART.search(file.path[:-5]))]
    if (
        not choice.is_folder
        and parts
        and {int(p[1]) for p in parts} != set(range(1, int(parts[0][2]) + 1))
    ):
        raise DownloadError(f"{choice.name.repo} lacks parts of {choice.files[0].path}")
    if not choice.is_folder and not parts and len(choice.files) > 1:
        raise DownloadError(f"{choice.name.repo} has {choice.files[0].path} twice")
    return choice
