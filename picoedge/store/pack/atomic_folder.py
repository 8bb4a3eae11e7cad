"""Atomic folder: written beside its target, then renamed into place."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from picoedge.errors import StorageError
from picoedge.files import disk_full, free_bytes, make_folder, sync, sync_tree, take_lock, writing
from picoedge.store.shards import MANIFEST

_LOCK = ".lock"
_OURS = re.compile(
    r"(?P<target>.+)\.(?P<kind>partial|old)-\w{1,16}|(?P<scratch>\.probe-\w+)", re.DOTALL
)
_ABANDONED_S = 3600.0  # an empty folder's writer takes its lock within moments
_SPARE_BYTES = 16 << 20


@contextmanager
def new_folder(target: Path, needed: int) -> Iterator[Path]:
    """Yield a new folder that replaces `target`, a pack or nothing, when the block succeeds.

    On an exception it is removed and `target` unchanged. Raises StorageError where the disk lacks
    `needed` bytes, fills up or cannot be written, and where `target` is not a pack.
    """
    _refuse_foreign(target)
    parent = target.absolute().parent
    with writing(parent, needed):
        make_folder(parent)
        sweep(parent)
        if free_bytes(parent) < needed + _SPARE_BYTES:
            raise disk_full(parent, needed)
        partial = target.absolute().with_name(f"{target.name}.partial-{os.urandom(4).hex()}")
        partial.mkdir()
        try:
            with _locked(partial):
                yield partial
                sync_tree(partial)
                _take_place(partial, target.absolute())
            (target / _LOCK).unlink(missing_ok=True)
            sync(parent)
        except BaseException:
            _remove(partial)
            raise


def _refuse_foreign(target: Path) -> None:
    if not os.path.lexists(target):
        return
    if target.is_dir() and ((target / MANIFEST).exists() or not any(target.iterdir())):
        return
    raise StorageError(f"{target} exists and is not a pack", "choose another name")


def sweep(folder: Path) -> int:
    """Remove what killed processes left in `folder`, and restore a pack they had renamed.

    Returns the bytes freed. What a live process holds the lock of is left alone, as is what cannot
    be removed, or is not ours.
    """
    try:
        found = {path: match for path in folder.iterdir() if (match := _OURS.fullmatch(path.name))}
    except OSError:
        return 0
    freed, alive = 0, set()
    for path in sorted(path for path, match in found.items() if match["kind"] != "old"):
        removed = _remove_dead(path)
        if removed is None:  # a live process may be between its two renames
            alive.add(found[path]["target"])
        freed += removed or 0
    for path in sorted(path for path, match in found.items() if match["kind"] == "old"):
        target = folder / found[path]["target"]
        if target.name in alive or not (path / MANIFEST).exists():
            continue
        if target.exists():
            freed += _remove(path)
        else:
            path.rename(target)
    return freed


def is_passing(name: str) -> bool:
    """Whether a folder of that name is a writer's, beside its target, or a scratch folder."""
    return _OURS.fullmatch(name) is not None


def _remove_dead(folder: Path) -> int | None:
    """Remove a folder whose writer is dead; the bytes freed, or None where it may be alive."""
    try:
        with (folder / _LOCK).open("rb") as file:
            return _remove(folder) if take_lock(file.fileno()) else None
    except FileNotFoundError:
        pass  # created a moment ago, or its writer was killed before it could take the lock
    except OSError:
        return None
    with suppress(OSError):
        if any(folder.iterdir()):
            return 0  # not ours
        if time.time() - folder.stat().st_mtime > _ABANDONED_S:
            folder.rmdir()
    return None


def _remove(folder: Path) -> int:
    """Remove a folder, its lock last: a process killed meanwhile leaves a folder known as ours."""
    freed = 0
    with suppress(OSError):
        for path in sorted(folder.iterdir(), key=lambda path: path.name == _LOCK):
            freed += 0 if path.is_dir() else 512 * path.lstat().st_blocks
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        folder.rmdir()
    return freed


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a new folder, which keeps other processes' `sweep` away.

    The lock survives a power cut: there, too, it tells that the folder's writer is dead.
    """
    with (folder / _LOCK).open("wb") as lock:
        take_lock(lock.fileno(), None)
        sync(folder)
        yield


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder for the block alone, which `sweep` removes if this process is killed."""
    folder = Path(tempfile.mkdtemp(prefix=".probe-", dir=parent))
    try:
        with _locked(folder):
            yield folder
    finally:
        _remove(folder)


def _take_place(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = target.with_name(f"{target.name}.old-{os.urandom(4).hex()}")
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    sync(target.parent)  # the old pack goes when the new one has its name, also after a power cut
    _remove(old)
