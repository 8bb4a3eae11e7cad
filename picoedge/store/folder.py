"""A folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from picoedge.errors import StorageError
from picoedge.store.files import disk_full, free_bytes, sync, sync_tree, writing

MANIFEST = "picoedge.json"
_LOCK = ".lock"
_SPARE_BYTES = 16 << 20


@contextmanager
def new_folder(target: Path, needed: int) -> Iterator[Path]:
    """A folder beside `target`, which takes its place when the block ends well.

    It is removed on any exception. A pack that was at `target` stays until then. Raises
    StorageError where the disk lacks `needed` bytes, is full, or cannot be written, and where
    something that is not a pack is in the way.
    """
    _refuse_foreign(target)
    parent = target.absolute().parent
    with writing(parent, needed):
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        if free_bytes(parent) < needed + _SPARE_BYTES:
            raise disk_full(parent, needed)
        partial = target.absolute().with_name(f"{target.name}.partial-{secrets.token_hex(4)}")
        partial.mkdir()
        try:
            with _locked(partial):
                yield partial
            sync_tree(partial)
            _take_place(partial, target.absolute())
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


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold a lock that tells `_sweep` of another process that this folder is being written."""
    lock = partial / _LOCK
    with lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        lock.unlink()


def _sweep(target: Path) -> None:
    """Remove what killed processes left of this pack."""
    for left in target.absolute().parent.glob(f"{target.name}.partial-*"):
        lock = left / _LOCK
        try:
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue  # being written, or not ours
    if target.exists():
        for old in target.absolute().parent.glob(f"{target.name}.old-*"):
            shutil.rmtree(old, ignore_errors=True)


def _take_place(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = target.with_name(f"{target.name}.old-{secrets.token_hex(4)}")
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
