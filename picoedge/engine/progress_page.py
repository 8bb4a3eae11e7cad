"""A page of memory on which a worker says how far it is, for the daemon to read at any time.

Shared memory rather than messages: it is read also while the worker waits for a disk, is stopped
or computes for seconds.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STAGES = ("starting", "pulling", "loading", "waiting for work", "computing", "ended")
_PAGE = struct.Struct("<BxxxIQQQ")  # stage, tokens of the pass, passes, bytes done, bytes in all
_SHARED = "/dev/shm"


@dataclass(frozen=True)
class Progress:
    """What the page says. `passes` grows with every pass; bytes are of pulling or loading."""

    stage: str = STAGES[0]
    tokens: int = 0
    passes: int = 0
    done: int = 0
    total: int = 0


class ProgressPage:
    """The worker's side and the daemon's of one page, at `path`."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._page = mmap.mmap(fd, _PAGE.size)
        finally:
            os.close(fd)

    def write(
        self, stage: str, tokens: int = 0, passes: int = 0, done: int = 0, total: int = 0
    ) -> None:
        """Say how far the worker is."""
        _PAGE.pack_into(self._page, 0, STAGES.index(stage), tokens, passes, done, total)

    def read(self) -> Progress:
        """What was said last."""
        stage, *numbers = _PAGE.unpack_from(self._page)
        return Progress(STAGES[min(stage, len(STAGES) - 1)], *numbers)

    def close(self) -> None:
        """Unmap it."""
        self._page.close()


@contextmanager
def new_page() -> Iterator[Path]:
    """A page nobody has written on, removed at the end."""
    fd, name = tempfile.mkstemp(prefix="picoedge-", dir=_SHARED if os.path.isdir(_SHARED) else None)
    try:
        os.ftruncate(fd, _PAGE.size)
        os.close(fd)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
