"""Shards and other items of a pack: those a board computes, needs, and has on its disk.

An incomplete pack has a record, `held.log`: a line naming the pack, then the name of each item that
is safely on disk. A pack without a record is complete. This module needs no NumPy, so that a daemon
which only donates shards does not load it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from picoedge.errors import ModelError
from picoedge.fields import TooManyValuesError, parse_json

MANIFEST = "picoedge.json"  # the file that makes a folder a pack
HELD = "held.log"
MANIFEST_BYTES = 1 << 24  # three times that of a model of 405 billion parameters
MANIFEST_VALUES = 1 << 18  # nearly twice as many: 29,000 shards of 5 values
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}")
HASH = re.compile(r"[0-9a-f]{64}")
PACK_BYTES = 1 << 46  # 70 TB, above any model; keeps sums of offsets within 64 bits
_REMEDY = "pack the model again"
_INDEXED = re.compile(r"(attention|ffn|head|embed)\.([0-9]+)")
_RECORD_BYTES = 1 << 24
UnitKind = Literal["attention", "ffn", "head", "embed"]
LAYER_KINDS: tuple[UnitKind, ...] = ("attention", "ffn")


@dataclass(frozen=True)
class Slice:
    """Spans of shards that one board computes, each possibly empty; the same in every layer.

    `owns_head`: this board embeds the tokens and gathers the logits of the whole vocabulary,
    also of head shards that other boards compute.
    """

    attention: range
    ffn: range
    head_shards: range = range(0)
    owns_head: bool = True

    def of(self, kind: str) -> range:
        """The span of shards of a kind; an embedding is cut like the head."""
        return {"attention": self.attention, "ffn": self.ffn}.get(kind, self.head_shards)

    def to_json(self) -> dict[str, list[int]]:
        """The spans, each as [first, one past the last], for other boards."""
        spans = {"attention": self.attention, "ffn": self.ffn, "head_shards": self.head_shards}
        return {name: [span.start, span.stop] for name, span in spans.items()}

    def to_report(self) -> dict[str, list[int]]:
        """As `to_json`, for `--json`, where head shards are the "vocabulary"."""
        names = {"head_shards": "vocabulary"}
        return {names.get(name, name): ends for name, ends in self.to_json().items()}


@dataclass(frozen=True)
class Unit:
    """A span of shards of one kind, contiguous in a file. The head is the layer after the last."""

    kind: UnitKind
    layer: int
    shards: range
    file: str
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """File offset of the first byte after the unit."""
        return self.offset + self.nbytes

    @property
    def shard_bytes(self) -> int:
        """Bytes of one shard."""
        return self.nbytes // len(self.shards)

    def part(self, first: int, last: int) -> Unit:
        """Sub-unit of shards [first, last), counted from the unit's first."""
        size = self.shard_bytes
        shards, offset = self.shards[first:last], self.offset + first * size
        return Unit(self.kind, self.layer, shards, self.file, offset, len(shards) * size)

    def shard_at(self, offset: int) -> str:
        """Shard-table name of the shard at this file offset, or nearest to it."""
        index = (min(max(offset, self.offset), self.end - 1) - self.offset) // self.shard_bytes
        folder = self.file.removesuffix(".safetensors")
        return f"{folder}/{self.kind}.{self.shards[index]:03d}"

    def place(self, folder: Path, offset: int) -> str:
        """File, shard and byte of this file offset, for messages."""
        return f"{folder / self.file}, shard {self.shard_at(offset)}, byte {offset}"


@dataclass(frozen=True)
class HeldShards:
    """Shards on a board's disk; of attention and FFN those that all layers have."""

    attention: frozenset[int] = frozenset()
    ffn: frozenset[int] = frozenset()
    head: frozenset[int] = frozenset()


@dataclass(frozen=True)
class PackItem:
    """A hashed byte range of one file: a shard, a vector, or a whole tokenizer file."""

    name: str
    file: str
    offset: int
    nbytes: int
    blake2b: str = ""  # "" while it is not known

    @property
    def is_text(self) -> bool:
        """Whether it is a tokenizer file, not weights."""
        return self.name == self.file


@dataclass(frozen=True)
class Wanted:
    """Items a board must hold: all vectors (norms are small), the shards of a slice, and, with
    `embed`, the embedding and tokenizer files.
    """

    part: Slice
    embed: bool = False


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """blake2b (32 bytes, in hex), as in manifests."""
    try:
        from _blake2 import blake2b  # hashlib's own, but without OpenSSL: 4 MB of a daemon
    except ImportError:
        from hashlib import blake2b
    return blake2b(data, digest_size=32).hexdigest()


def pack_id(manifest: bytes) -> str:
    """Identity of a pack: the hash of its manifest, which hashes all content."""
    return digest_of(manifest)


def read_inventory(manifest: bytes, path: Path) -> dict[str, PackItem]:
    """Items of a manifest by name, in its order. Raises ModelError naming the damaged entry.

    Checks names and ranges only; users of the weights call `read_manifest`.
    """
    try:
        values = parse_json(manifest, MANIFEST_VALUES)
    except TooManyValuesError as error:
        raise ModelError(f"{path} {error}", _REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} does not hold valid JSON", _REMEDY) from error
    return inventory(values, path)


def inventory(values: Any, path: object) -> dict[str, PackItem]:
    """`read_inventory` of the manifest's JSON value."""
    items: dict[str, PackItem] = {}
    for kind in ("shards", "text"):
        table = values.get(kind) if isinstance(values, Mapping) else None
        if not isinstance(table, dict):
            raise ModelError(f"{path} has no table of shards", _REMEDY)
        for name, row in table.items():
            items[name] = _item(name, row, path)
    return items


def _item(name: str, row: Any, path: object) -> PackItem:
    if isinstance(row, dict):
        file, hashed = row.get("file", name), row.get("blake2b")
        offset, nbytes = row.get("offset", 0), row.get("bytes")
        named = isinstance(file, str) and is_file_name(file)
        hashed = hashed if isinstance(hashed, str) and HASH.fullmatch(hashed) else ""
        if named and hashed and is_count(offset) and is_count(nbytes):
            return PackItem(name, file, offset, nbytes, hashed)
    raise ModelError(f"{path}: the entry of {name[:80]!r} is damaged", _REMEDY)


def is_file_name(name: str) -> bool:
    """Whether `name` is allowed for a file of a pack: no path, none of picoedge's own files."""
    return bool(_FILE_NAME.fullmatch(name)) and name not in (MANIFEST, HELD)


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value can be an offset or size in a pack."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= PACK_BYTES


def needed(items: Iterable[PackItem], wanted: Wanted, *, tied: bool) -> list[PackItem]:
    """Items that `wanted` selects; `tied`: the embedding is the head."""
    return [item for item in items if _is_needed(item, wanted, tied)]


def _is_needed(item: PackItem, wanted: Wanted, tied: bool) -> bool:
    if item.is_text:
        return wanted.embed
    match = _INDEXED.fullmatch(item.name.rpartition("/")[2])
    if match is None:
        return True
    kind, shard = match[1], int(match[2])
    is_row = kind == "embed" or (kind == "head" and tied)
    return (is_row and wanted.embed) or (kind != "embed" and shard in wanted.part.of(kind))


def held_shards(names: Iterable[str], held: Collection[str]) -> HeldShards:
    """Shards that are held in all layers; `names`: all items of the pack."""
    shards: dict[str, set[int]] = {"attention": set(), "ffn": set(), "head": set()}
    missing = {kind: set[int]() for kind in shards}
    for name in names:
        match = _INDEXED.fullmatch(name.rpartition("/")[2])
        if match is not None and match[1] in shards:
            (shards if name in held else missing)[match[1]].add(int(match[2]))
    return HeldShards(**{kind: frozenset(shards[kind] - missing[kind]) for kind in shards})


def record_head(identity: str) -> bytes:
    """First line of a pack's record."""
    return f"picoedge-held 1 {identity}\n".encode()


def read_held(folder: Path, identity: str, names: Iterable[str]) -> tuple[frozenset[str], int]:
    """Items named in a pack's record, and the length of the record's valid part.

    The valid part ends before a line that a power cut left incomplete. Raises FileNotFoundError
    where there is no record.
    """
    path = folder / HELD
    with path.open("rb") as file:
        data = file.read(_RECORD_BYTES)
    head = record_head(identity)
    if not data.startswith(head):
        return frozenset(), 0
    known, held, sound = {name.encode(): name for name in names}, [], len(head)
    for line in data[len(head) :].split(b"\n")[:-1]:
        if line not in known:
            break
        held.append(known[line])
        sound += len(line) + 1
    return frozenset(held), sound


def is_partial(folder: Path) -> bool:
    """Whether a pack has a record, so may be incomplete."""
    return os.path.lexists(folder / HELD)
