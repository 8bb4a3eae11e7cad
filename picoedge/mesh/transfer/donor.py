"""What a board gives of the packs on its shelf: which items of a pack it holds, and their bytes.

A pack is asked for by its identity, an item by its name in the pack's own manifest. Nothing that
a peer sends becomes a path: it is only looked up. Answers are small parts, read when they are
asked for, so that a daemon of one thread is never long at it.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from picoedge.errors import ModelError, PicoedgeError, ProtocolError, StorageError
from picoedge.fields import Fields
from picoedge.mesh.transport.frames import U32, Header, Kind
from picoedge.mesh.transport.messages import Body
from picoedge.mesh.transport.replies import Handler, RawReply
from picoedge.store.pack.inventory import (
    HASH,
    HELD,
    MANIFEST_BYTES,
    PackItem,
    is_file_name,
    pack_id,
    read_held,
    read_inventory,
)
from picoedge.store.shards import MANIFEST

OFFER, READ = "shards-offer", "shards-read"
PART_BYTES = 128 << 10  # comes whole within a heartbeat, also over a link of 2 Mbit/s
_AHEAD_BYTES = 1 << 20  # asked of the disk before a peer asks for it
_MAX_PACKS = 2  # whose tables are kept: a large one's take megabytes
_MAX_NAME = 200

Stamp = tuple[int, int, int, int]


@dataclass
class _Shelved:
    """A pack on the shelf: its table, and what of it is here; None where all is."""

    folder: Path
    identity: str
    stamp: Stamp
    name: str
    items: dict[str, PackItem]
    held: frozenset[str] | None = None
    record: Stamp | None = None

    def refresh(self) -> None:
        """Read the record again if it has changed since."""
        record = _stamp(self.folder / HELD)
        if record == self.record:
            return
        self.held = None
        if record is not None:
            try:
                self.held = read_held(self.folder, self.identity, self.items)[0]
            except FileNotFoundError:  # it has just become whole
                record = None
        self.record = record

    def has(self, name: str) -> bool:
        return self.held is None or name in self.held


class Donor:
    """Answers peers that may ask: whoever calls this has checked their keys."""

    def __init__(self, shelf: Iterable[Path]) -> None:
        """`shelf`: folders that hold packs, NAME.pico each."""
        self._shelf = tuple(shelf)
        self._beside: set[Path] = set()
        self._identities: dict[Path, tuple[Stamp, str]] = {}
        self._open: dict[str, _Shelved] = {}

    def offer(self, body: Body) -> Body:
        """{"pack": identity} -> name, bytes of the manifest, and a bit for each item it lists.

        `held` is base64, the first item the lowest bit; None stands for all. Raises ProtocolError,
        and ModelError where the pack is not here.
        """
        shelved = self._find(_identity_of(body))
        held = None
        if shelved.held is not None:
            held = pack_bits([name in shelved.held for name in shelved.items])
        nbytes = shelved.stamp[2]
        count = len(shelved.items)
        return {"name": shelved.name, "manifest_bytes": nbytes, "items": count, "held": held}

    def add(self, pack: Path) -> None:
        """Give of this pack as well, which is not on the shelf."""
        self._beside.add(pack)

    def folder_of(self, identity: str) -> Path:
        """Where the pack is. Raises ModelError where it is not here."""
        return self._find(identity).folder

    def read(self, body: Body) -> tuple[Header, bytes]:
        """{"id", "pack", "item", "offset", "bytes"} -> a part of an item, at most PART_BYTES.

        The header's sequence is the id, its extra the offset. Raises ProtocolError, and
        ModelError or StorageError where the item is not here or cannot be read.
        """
        fields = Fields(body)
        number, offset = fields.integer("id", 0, U32), fields.integer("offset", 0, U32)
        nbytes = fields.integer("bytes", 0, PART_BYTES)
        shelved = self._find(_identity_of(body))
        name = fields.text("item", _MAX_NAME)
        item = self._item(shelved, name)
        if offset + nbytes > item.nbytes:
            raise ProtocolError(f"{name} has {item.nbytes} bytes, not {offset + nbytes}")
        data = _read(shelved.folder / item.file, item, offset, nbytes)
        return Header(Kind.SHARD, sequence=number, shape=(nbytes,), extra=offset), data

    def handlers(self) -> dict[str, Handler]:
        """What a `Node` is to be given: `node.rpc.on(kind, handler)` for each."""

        def read(peer: str, body: Body) -> RawReply:
            header, data = self.read(body)
            return RawReply(header, data)

        return {OFFER: lambda peer, body: self.offer(body), READ: read}

    def _item(self, shelved: _Shelved, name: str) -> PackItem:
        if name == MANIFEST:
            return PackItem(MANIFEST, MANIFEST, 0, shelved.stamp[2], shelved.identity)
        item = shelved.items.get(name)
        if item is None:
            raise ProtocolError(f"{shelved.name} has no item {name[:80]!r}")
        if not shelved.has(name):
            raise ModelError(f"{name} of {shelved.name} is not on this board")
        return item

    def _find(self, identity: str) -> _Shelved:
        known = self._open.get(identity)
        if known is None or _stamp(known.folder / MANIFEST) != known.stamp:
            self._open.pop(identity, None)
            known = self._look_for(identity)
            while len(self._open) >= _MAX_PACKS:
                del self._open[next(iter(self._open))]
            self._open[identity] = known
        known.refresh()
        return known

    def _look_for(self, identity: str) -> _Shelved:
        seen: dict[Path, tuple[Stamp, str]] = {}
        found: _Shelved | None = None
        for folder in self._packs():
            stamp = _stamp(folder / MANIFEST)
            if stamp is None:
                continue
            old = self._identities.get(folder)
            if old is None or old[0] != stamp:
                old = (stamp, _identity(folder))
            seen[folder] = old
            if found is None and old[1] == identity:
                found = _shelved(folder, identity, stamp)
        self._identities = seen
        if found is None:
            raise ModelError("this pack is not on this board")
        return found

    def _packs(self) -> list[Path]:
        try:
            on_shelf = [path for folder in self._shelf for path in sorted(folder.glob("*.pico"))]
            return on_shelf + sorted(self._beside)
        except OSError:
            return []


def pack_bits(bits: list[bool]) -> str:
    """A bit for each, the first the lowest, in base64."""
    data = bytearray(-(-len(bits) // 8))
    for i, bit in enumerate(bits):
        data[i >> 3] |= bit << (i & 7)
    return base64.b64encode(data).decode()


def unpack_bits(text: str, count: int) -> list[bool]:
    """The `count` bits that `pack_bits` made a text of. Raises ProtocolError."""
    size = -(-count // 8)
    try:
        data = base64.b64decode(text, validate=True) if len(text) <= 2 * size + 4 else b""
    except ValueError:
        data = b""
    if len(data) != size:
        raise ProtocolError(f"a list of what is held that is not of {count} items")
    return [bool(data[i >> 3] >> (i & 7) & 1) for i in range(count)]


def _identity_of(body: Body) -> str:
    return Fields(body).text("pack", 64, HASH, "the hash of a pack")


def _stamp(path: Path) -> Stamp | None:
    """What changes where a file does; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _identity(folder: Path) -> str:
    """A pack's identity; empty where its manifest cannot be read."""
    try:
        return pack_id(_manifest(folder))
    except (OSError, PicoedgeError):
        return ""


def _manifest(folder: Path) -> bytes:
    with (folder / MANIFEST).open("rb") as file:
        data = file.read(MANIFEST_BYTES + 1)
    if len(data) > MANIFEST_BYTES:
        raise ModelError(f"{folder / MANIFEST} is larger than any manifest")
    return data


def _shelved(folder: Path, identity: str, stamp: Stamp) -> _Shelved:
    try:
        manifest = _manifest(folder)
    except OSError as error:
        raise StorageError(f"cannot read its manifest: {error.strerror}") from error
    if pack_id(manifest) != identity or len(manifest) != stamp[2]:
        raise ModelError("this pack was changed while it was looked at")
    items = read_inventory(manifest, folder / MANIFEST)
    name = folder.name if is_file_name(folder.name) else "model.pico"  # others must write it, too
    return _Shelved(folder, identity, stamp, name.removesuffix(".pico"), items)


def _read(path: Path, item: PackItem, offset: int, nbytes: int) -> bytes:
    """Bytes of an item. A link is not followed: who made the pack may not have been its user."""
    start = item.offset + offset
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise StorageError(f"{path.name} is not a file")
            data = os.pread(fd, nbytes, start)
            ahead = min(_AHEAD_BYTES, item.nbytes - offset - nbytes)
            if ahead > 0:
                os.posix_fadvise(fd, start + nbytes, ahead, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(f"cannot read {path.name}: {error.strerror}") from error
    if len(data) != nbytes:
        raise StorageError(f"{path.name} is shorter than its pack says")
    return data
