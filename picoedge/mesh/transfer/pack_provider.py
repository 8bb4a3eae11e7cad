"""Packs on this board's disk for its donor: found by identity, read from their files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from picoedge.errors import ModelError, PicoedgeError, StorageError
from picoedge.store.shards import (
    HELD,
    MANIFEST,
    MANIFEST_BYTES,
    PackItem,
    is_file_name,
    pack_id,
    read_held,
    read_inventory,
)

_AHEAD_BYTES = 1 << 20  # the kernel is told to read these before a peer asks for them
_MAX_PACKS = 2  # whose tables are kept: a large one's take megabytes

FileStamp = tuple[int, int, int, int]  # device, inode, bytes, time of change


class PackProvider:
    """A pack's items, a `ShardProvider`. The pack may still be filling."""

    def __init__(self, folder: Path, identity: str, stamp: FileStamp) -> None:
        """`stamp`: of the manifest when its identity was computed. Raises PicoedgeError."""
        try:
            manifest = _read_manifest(folder)
        except OSError as error:
            raise StorageError(f"cannot read its manifest: {error.strerror}") from error
        if pack_id(manifest) != identity or len(manifest) != stamp[2]:
            raise ModelError("this pack was changed while it was looked at")
        self.folder, self.identity, self._stamp = folder, identity, stamp
        items = read_inventory(manifest, folder / MANIFEST)
        self.names: Sequence[str] = list(items)
        self._items = items | {MANIFEST: PackItem(MANIFEST, MANIFEST, 0, stamp[2], identity)}
        # Boards that pull it name a folder after it.
        name = folder.name if is_file_name(folder.name) else "model.pico"
        self.name = name.removesuffix(".pico")
        self.held: frozenset[str] | None = None
        self._record: FileStamp | None = None

    @property
    def is_current(self) -> bool:
        """Whether the manifest on the disk is unchanged since it was read."""
        return file_stamp(self.folder / MANIFEST) == self._stamp

    def refresh(self) -> None:
        """Read again which items are here, if their record has changed."""
        record = file_stamp(self.folder / HELD)
        if record == self._record:
            return
        self.held = None
        if record is not None:
            try:
                self.held = read_held(self.folder, self.identity, self.names)[0]
            except FileNotFoundError:  # it has just become whole
                record = None
        self._record = record

    def nbytes(self, name: str) -> int | None:
        """See `ShardProvider.nbytes`."""
        item = self._items.get(name)
        return None if item is None else item.nbytes

    def read(self, name: str, offset: int, nbytes: int) -> tuple[bytes, int]:
        """See `ShardProvider.read`. A pack's items never change: they have version 0."""
        item = self._items[name]
        return _read(self.folder / item.file, item, offset, nbytes), 0


class PackShelf:
    """Packs in folders, NAME.pico each, and single ones that were added."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders, self._added = tuple(folders), set[Path]()
        self._identities: dict[Path, tuple[FileStamp, str]] = {}
        self._open: dict[str, PackProvider] = {}

    def add(self, pack: Path) -> None:
        """Give this pack as well."""
        self._added.add(pack)

    def find(self, identity: str) -> PackProvider:
        """The pack of that identity. Raises ModelError if it is not here."""
        provider = self._open.get(identity)
        if provider is None or not provider.is_current:
            self._open.pop(identity, None)
            provider = self._search(identity)
            while len(self._open) >= _MAX_PACKS:
                del self._open[next(iter(self._open))]
            self._open[identity] = provider
        provider.refresh()
        return provider

    def _search(self, identity: str) -> PackProvider:
        identities: dict[Path, tuple[FileStamp, str]] = {}
        provider: PackProvider | None = None
        for folder in self._packs():
            stamp = file_stamp(folder / MANIFEST)
            if stamp is None:
                continue
            known = self._identities.get(folder)
            if known is None or known[0] != stamp:
                known = (stamp, _identity(folder))
            identities[folder] = known
            if provider is None and known[1] == identity:
                provider = PackProvider(folder, identity, stamp)
        self._identities = identities
        if provider is None:
            raise ModelError("this pack is not on this board")
        return provider

    def _packs(self) -> list[Path]:
        try:
            shelved = [path for folder in self._folders for path in sorted(folder.glob("*.pico"))]
            return shelved + sorted(self._added)
        except OSError:
            return []


def file_stamp(path: Path) -> FileStamp | None:
    """Figures that change when a file does; None if there is no regular file."""
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _identity(folder: Path) -> str:
    """A pack's identity; "" if its manifest cannot be read."""
    try:
        return pack_id(_read_manifest(folder))
    except (OSError, PicoedgeError):
        return ""


def _read_manifest(folder: Path) -> bytes:
    with (folder / MANIFEST).open("rb") as file:
        data = file.read(MANIFEST_BYTES + 1)
    if len(data) > MANIFEST_BYTES:
        raise ModelError(f"{folder / MANIFEST} is larger than any manifest")
    return data


def _read(path: Path, item: PackItem, offset: int, nbytes: int) -> bytes:
    """Bytes of an item. Links are not followed: a pack may have been made by another user."""
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
