"""Partial pack: sparse files that are filled item by item, and a record of the items held.

An item whose hash matches is written at its place, but counts only once the record names it, which
happens after fsync. So after SIGKILL or a power cut only unrecorded items are fetched again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from picoedge.errors import ModelError, StorageError
from picoedge.files import disk_full, free_bytes, sync, take_lock, write_all, writing
from picoedge.store.pack.atomic_folder import new_folder
from picoedge.store.pack.manifest import Manifest, parse_manifest
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import (
    HELD,
    MANIFEST,
    MANIFEST_BYTES,
    PACK_BYTES,
    PackItem,
    Wanted,
    digest_of,
    is_file_name,
    is_partial,
    pack_id,
    read_held,
    record_head,
)

ITEM_BYTES = 1 << 30
_SPARE_BYTES = 16 << 20
_SYNC_BYTES = 16 << 20  # written per fsync: a card takes too long for one after each item
_TEMPORARY = ".{}.part"


def pack_folder(shelf: Path, name: str, identity: str) -> Path:
    """Folder on a shelf of the pack `identity`, named `name` by peers; may not exist yet.

    Avoids the folder of another pack of that name. Raises ModelError for an invalid name.
    """
    if not is_file_name(f"{name}.pico"):
        raise ModelError(f"{name[:80]!r} cannot be the name of a pack")
    for folder in sorted(shelf.glob("*.pico")):
        if _is(folder, identity):
            return folder
    free = shelf / f"{name}.pico"
    return shelf / f"{name}-{identity[:8]}.pico" if os.path.lexists(free) else free


def _is(folder: Path, identity: str) -> bool:
    manifest = folder / MANIFEST
    try:
        return manifest.stat().st_size <= MANIFEST_BYTES and (
            pack_id(manifest.read_bytes()) == identity
        )
    except OSError:
        return False


def create_partial(folder: Path, manifest: bytes) -> None:
    """Create the pack of a peer's manifest at `folder`, with file headers only.

    The caller has checked the manifest's hash. Raises ModelError where the manifest is invalid,
    StorageError where `folder` exists or the disk is full.
    """
    if not is_file_name(folder.name) or folder.suffix != ".pico":
        raise ModelError(f"{folder.name!r} cannot be the name of a pack", "name it NAME.pico")
    checked = parse_manifest(manifest, folder / MANIFEST)
    _check_sizes(checked, folder)
    if os.path.lexists(folder):
        raise StorageError(f"{folder} is there already", "remove it: picoedge rm")
    with new_folder(folder, sum(len(file.header) for file in checked.files)) as made:
        for file in checked.files:
            with (made / file.name).open("wb") as out:
                out.write(file.header)
                out.truncate(file.nbytes)
        (made / HELD).write_bytes(record_head(pack_id(manifest)))
        (made / MANIFEST).write_bytes(manifest)


def _check_sizes(manifest: Manifest, folder: Path) -> None:
    sizes = [item.nbytes for item in manifest.items.values()]
    if sum(sizes) > PACK_BYTES or max(sizes) > ITEM_BYTES:
        raise ModelError(
            f"{folder / MANIFEST} describes {sum(sizes)} bytes, {max(sizes)} of them in one piece",
            "no pack is made like this: do not use it",
        )


class PartialPack:
    """A pack folder being filled, by one process at a time. The end of `with` records items."""

    def __init__(
        self,
        folder: Path,
        *,
        free: Callable[[Path], int] = free_bytes,
        sync_bytes: int = _SYNC_BYTES,
    ) -> None:
        """Open a pack that `create_partial` made; `free(folder)` returns the disk's free bytes.

        Raises ModelError, and StorageError while another process fills this pack.
        """
        self.folder, self._free, self._sync_bytes = folder, free, sync_bytes
        self.pack = Pack.open(folder)
        self._items = {item.name: item for item in self.pack.items()}
        self._files: dict[str, int] = {}
        self._unrecorded: list[PackItem] = []
        self._thread = ThreadPoolExecutor(1, "record")
        self._recording: Future[None] | None = None
        self.held: set[str] = set(self._items)
        self._record, self._end = -1, 0
        if is_partial(folder):
            self._open_record()

    def _open_record(self) -> None:
        with writing(self.folder):
            self._record = os.open(self.folder / HELD, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if not take_lock(self._record):
                    raise StorageError(
                        f"another process is filling {self.folder}", "wait until it has ended"
                    )
                identity = self.pack.identity
                held, self._end = read_held(self.folder, identity, self._items)
                self.held = set(held)
                os.ftruncate(self._record, self._end)
                if not self._end:
                    self._append(record_head(identity))
            except BaseException:
                os.close(self._record)
                raise

    def _append(self, lines: bytes) -> None:
        # At a fixed offset: overwrites a line that a full disk cut short.
        write_all(self._record, lines, self._end)
        self._end += len(lines)

    def missing(self, wanted: Wanted) -> list[PackItem]:
        """Wanted items that are not written yet."""
        return [item for item in self.pack.needed(wanted) if item.name not in self.held]

    def check_room(self, items: list[PackItem]) -> None:
        """Raise StorageError with the figures where the disk lacks room for `items`."""
        needed = sum(item.nbytes for item in items)
        free = self._free(self.folder)
        if items and free < needed + _SPARE_BYTES:
            raise disk_full(self.folder, needed, free)

    def write(self, item: PackItem, data: bytes | bytearray | memoryview) -> None:
        """Write an item at its place. Raises ModelError on a wrong hash, StorageError."""
        if len(data) != item.nbytes or digest_of(data) != item.blake2b:
            raise ModelError(f"{item.name} does not match its hash", "get it from elsewhere")
        if item.name in self.held:
            return
        with writing(self.folder, item.nbytes):
            if item.is_text:
                self._write_text(item, data)
            else:
                write_all(self._file(item.file), data, item.offset)
        self.held.add(item.name)
        self._unrecorded.append(item)
        if sum(item.nbytes for item in self._unrecorded) >= self._sync_bytes:
            self._record_later()

    def _write_text(self, item: PackItem, data: bytes | bytearray | memoryview) -> None:
        # By rename: readers of tokenizer files do not consult the record.
        temporary = self.folder / _TEMPORARY.format(item.file)
        temporary.write_bytes(data)
        sync(temporary)
        temporary.rename(self.folder / item.file)

    def _file(self, name: str) -> int:
        if name not in self._files:
            flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            self._files[name] = os.open(self.folder / name, flags)
        return self._files[name]

    def commit(self) -> None:
        """fsync and record all written items. Raises StorageError."""
        self._record_later()
        self._wait()

    def _record_later(self) -> None:
        """Start a commit in the background. Raises StorageError of the previous one."""
        self._wait()
        if self._unrecorded:
            items, files = self._unrecorded, list(self._files.values())
            self._unrecorded, self._files = [], {}
            self._recording = self._thread.submit(self._sync_and_record, items, files)

    def _wait(self) -> None:
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.result()

    def _sync_and_record(self, items: list[PackItem], files: list[int]) -> None:
        try:
            with writing(self.folder, sum(item.nbytes for item in items)):
                for fd in files:
                    os.fdatasync(fd)
                if any(item.is_text for item in items):
                    sync(self.folder)
                self._append("".join(f"{item.name}\n" for item in items).encode())
                os.fdatasync(self._record)
        finally:
            for fd in files:
                os.close(fd)

    def close(self) -> None:
        """Commit and unlock; a complete pack loses its record. Idempotent."""
        try:
            self.commit()
            if self._record >= 0 and self.held >= set(self._items):
                (self.folder / HELD).unlink(missing_ok=True)
                sync(self.folder)
        finally:
            self._thread.shutdown()
            for fd in self._files.values():
                os.close(fd)
            self._files.clear()
            if self._record >= 0:
                os.close(self._record)
            self._record = -1

    def __enter__(self) -> PartialPack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
