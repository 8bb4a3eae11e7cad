"""Atomic folder: written beside its target, then renamed into place."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from picoedge.errors import StorageError
from picoedge.files import disk_full, free_bytes, sync, sync_tree, take_lock, writing
from picoedge.store.shards import MANIFEST

_LOCK = ".lock"
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
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        if free_bytes(parent) < needed + _SPARE_BYTES:
            raise disk_full(parent, needed)
        partial = target.absolute().with_name(f"{target.name}.partial-{os.urandom(4).hex()}")
        partial.mkdir()
        try:
            with (partial / _LOCK).open("wb") as lock:
                take_lock(lock.fileno(), None)  # keeps another process's `_sweep` away
                yield partial
                sync_tree(partial)
                _take_place(partial, target.absolute())
            (target / _LOCK).unlink(missing_ok=True)
            sync(parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _refuse_foreign(target: Path) -> None:
    if not os.path.lexists(target):
        return
    if target.is_dir() and ((target / MANIFEST).exists() or not any(target.iterdir())):
        return
    raise StorageError(f"{target} exists and is not a pack", "choose another name")


def _sweep(target: Path) -> None:
    """Remove folders that killed processes left, and restore a pack they had renamed."""
    dead = [_remove_dead(folder) for folder in _beside(target, "partial")]
    if not all(dead):
        return  # a live process may be between its two renames
    for old in _beside(target, "old"):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif (old / MANIFEST).exists():
            old.rename(target)


def _beside(target: Path, what: str) -> list[Path]:
    """Folders of `new_folder` for this target, of kind "partial" or "old"."""
    return sorted(target.absolute().parent.glob(f"{glob.escape(target.name)}.{what}-*"))


def _remove_dead(partial: Path) -> bool:
    """Remove a folder whose writer is dead; False where it may be alive."""
    try:
        with (partial / _LOCK).open("rb") as file:
            if not take_lock(file.fileno()):
                return False
            shutil.rmtree(partial, ignore_errors=True)
    except FileNotFoundError:
        return True  # created a moment ago, or not ours
    except OSError:
        return False
    return True


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
    shutil.rmtree(old, ignore_errors=True)
