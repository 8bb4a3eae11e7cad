"""A pack as the byte ranges that boards pass on, each with its hash; and which of them are here.

A pack that is not whole has a record, `held.log`: a line that names the pack, then the name of
each item that is safely on the disk. What it does not name is not here. A pack without a record
is whole. Nothing here needs NumPy: a board that only passes shards on does not load it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from picoedge.errors import ModelError
from picoedge.store.shards import MANIFEST, HeldShards, Slice

HELD = "held.log"
MANIFEST_BYTES = 1 << 24  # three times that of 27,517 shards (405 billion parameters)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}")
HASH = re.compile(r"[0-9a-f]{64}")
PACK_BYTES = 1 << 46
_REMEDY = "pack the model again"
_INDEXED = re.compile(r"(attention|ffn|head|embed)\.([0-9]+)")
_RECORD_BYTES = 1 << 24


@dataclass(frozen=True)
class PackItem:
    """A named range of one of the pack's files, and its blake2b: a shard, a vector, a text."""

    name: str
    file: str
    offset: int
    nbytes: int
    blake2b: str

    @property
    def is_text(self) -> bool:
        """Whether it is a whole file of the tokenizer's, and no part of the weights."""
        return self.name == self.file


@dataclass(frozen=True)
class Wanted:
    """What a board is to hold: a slice, and for who answers (`embed`) the rows of the tokens.

    The vectors are in each (norms are small and every board needs them), the tokenizer's files
    where the rows are: text is looked up there.
    """

    part: Slice
    embed: bool = False


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """blake2b (32 bytes, in hex), as manifests have it."""
    try:
        from _blake2 import blake2b  # as hashlib has it, without OpenSSL: 4 MB of a daemon
    except ImportError:
        from hashlib import blake2b
    return blake2b(data, digest_size=32).hexdigest()


def pack_id(manifest: bytes) -> str:
    """What a pack is called among boards: the hash of its manifest, so of all that is in it."""
    return digest_of(manifest)


def read_inventory(manifest: bytes, path: Path) -> dict[str, PackItem]:
    """The items of a manifest by name, in its order; raises ModelError naming what is wrong.

    It answers for names and ranges only. Whoever uses the weights reads the manifest whole.
    """
    try:
        values = json.loads(manifest)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} does not hold valid JSON", _REMEDY) from error
    tables = [values.get(name) if isinstance(values, dict) else None for name in ("shards", "text")]
    items: dict[str, PackItem] = {}
    for table in tables:
        if not isinstance(table, dict):
            raise ModelError(f"{path} has no table of shards", _REMEDY)
        for name, row in table.items():
            items[name] = _item(name, row, path)
    return items


def _item(name: str, row: Any, path: Path) -> PackItem:
    if isinstance(row, dict):
        file, hashed = row.get("file", name), row.get("blake2b")
        offset, nbytes = row.get("offset", 0), row.get("bytes")
        named = isinstance(file, str) and is_file_name(file)
        hashed = hashed if isinstance(hashed, str) and HASH.fullmatch(hashed) else ""
        if named and hashed and is_count(offset) and is_count(nbytes):
            return PackItem(name, file, offset, nbytes, hashed)
    raise ModelError(f"{path}: the entry of {name[:80]!r} is damaged", _REMEDY)


def is_file_name(name: str) -> bool:
    """Whether a file of a pack may be called this: plain, and not one that picoedge writes."""
    return bool(_FILE_NAME.fullmatch(name)) and name not in (MANIFEST, HELD)


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value can be a place in a pack, or a number of its bytes."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= PACK_BYTES


def needed(items: Iterable[PackItem], wanted: Wanted, *, tied: bool) -> list[PackItem]:
    """The items that `wanted` asks for; `tied`: rows of tokens are gathered from the head."""
    runs: Mapping[str, range | bool] = {
        "attention": wanted.part.attention,
        "ffn": wanted.part.ffn,
        "head": True if wanted.embed and tied else wanted.part.head_shards,
        "embed": wanted.embed,
    }
    return [item for item in items if _is_needed(item, runs)]


def _is_needed(item: PackItem, runs: Mapping[str, range | bool]) -> bool:
    if item.is_text:
        return bool(runs["embed"])
    found = _INDEXED.fullmatch(item.name.rpartition("/")[2])
    if found is None:
        return True
    run = runs[found[1]]
    return run if isinstance(run, bool) else int(found[2]) in run


def held_shards(names: Iterable[str], held: Collection[str]) -> HeldShards:
    """The shards that are held, of all layers; `names` are of all the pack's items."""
    here, lacking = ({kind: set[int]() for kind in ("attention", "ffn", "head")} for _ in range(2))
    for name in names:
        found = _INDEXED.fullmatch(name.rpartition("/")[2])
        if found is not None and found[1] in here:
            (here if name in held else lacking)[found[1]].add(int(found[2]))
    return HeldShards(**{kind: frozenset(here[kind] - lacking[kind]) for kind in here})


def record_head(identity: str) -> bytes:
    """The first line of the record of a pack."""
    return f"picoedge-held 1 {identity}\n".encode()


def read_held(folder: Path, identity: str, names: Iterable[str]) -> tuple[frozenset[str], int]:
    """The items of the pack that its record names, and the length of the part that is sound.

    A last line without its end was being written when the power went; nothing from there on
    counts. Raises FileNotFoundError where there is no record: the pack is whole.
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
    """Whether a pack has a record of what it holds, and so may lack some of itself."""
    return os.path.lexists(folder / HELD)
