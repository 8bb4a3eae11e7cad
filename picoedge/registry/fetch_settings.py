"""What every way of fetching shares: settings, progress, and errors about the disk."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from picoedge.errors import StorageError
from picoedge.files import storage_errors, take_lock
from picoedge.units import format_size

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class FetchSettings:
    """How things are fetched."""

    hf_endpoint: str = "https://huggingface.co"
    timeout_s: float = 30.0
    tries: int = 5
    pause: Callable[[float], None] = time.sleep
    pip: tuple[str, ...] = (sys.executable, "-m", "pip")


def require_space(folder: Path, n_bytes: int) -> None:
    """Raises StorageError where the disk of `folder` cannot take `n_bytes` more."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise StorageError(
            f"{folder}: {format_size(n_bytes)} are needed, {format_size(free)} are free",
            "free some space, or set PICOEDGE_HOME to a folder on a larger disk",
        )


def as_storage_error(path: Path) -> AbstractContextManager[None]:
    """Turn what the operating system says about `path` into StorageError."""
    return storage_errors(
        path, "free some space or check who may write there; PICOEDGE_HOME names another folder"
    )


@contextmanager
def lock_file(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path` against other processes; `waiting` is called if one has it.

    The file stays: removing it would let two processes lock two files of one name.
    Raises StorageError.
    """
    with as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        if not take_lock(file.fileno()):
            waiting()
            take_lock(file.fileno(), None)
        yield
