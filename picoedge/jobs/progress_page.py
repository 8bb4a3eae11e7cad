"""A page of memory on which a worker says how far it is, for the daemon to read at any time.

Shared memory rather than messages: it is read also while the worker waits for a disk, is stopped
or computes for seconds.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STAGES = ("starting", "pulling", "loading", "waiting for work", "computing", "ended")
_PAGE = struct.Struct("<BxxxIQQQ")  # stage, tokens of the pass, passes, bytes done, bytes in all
_WORK = struct.Struct("<Qddd")  # tokens; seconds of computing, of waiting for sums, for the disk


@dataclass(frozen=True)
class Work:
    """What a worker has done since its session began."""

    tokens: int = 0
    compute_s: float = 0.0
    sync_s: float = 0.0  # waiting for other boards' parts of sums
    disk_s: float = 0.0  # waiting for weights


@dataclass(frozen=True)
class Progress:
    """What the page says. `passes` grows with every pass; bytes are of pulling or loading."""

    stage: str = STAGES[0]
    tokens: int = 0
    passes: int = 0
    done: int = 0
    total: int = 0
    work: Work = Work()


class ProgressPage:
    """The worker's side and the daemon's of one page, at `path`."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._page = mmap.mmap(fd, _PAGE.size + _WORK.size)
        finally:
            os.close(fd)

    def write(
        self, stage: str, tokens: int = 0, passes: int = 0, done: int = 0, total: int = 0
    ) -> None:
        """Say how far the worker is."""
        _PAGE.pack_into(self._page, 0, STAGES.index(stage), tokens, passes, done, total)

    def add_up(self, work: Work) -> None:
        """Say what has been done so far."""
        _WORK.pack_into(
            self._page, _PAGE.size, work.tokens, work.compute_s, work.sync_s, work.disk_s
        )

    def read(self) -> Progress:
        """What was said last."""
        stage, tokens, passes, done, total = _PAGE.unpack_from(self._page)
        work = Work(*_WORK.unpack_from(self._page, _PAGE.size))
        return Progress(STAGES[min(stage, len(STAGES) - 1)], tokens, passes, done, total, work)

    def close(self) -> None:
        """Unmap it."""
        self._page.close()


@contextmanager
def new_page() -> Iterator[Path]:
    """A page nobody has written on, for processes that have the descriptor its path ends with.

    It is of no file: nothing of it is left, however those processes end.
    """
    fd = os.memfd_create("picoedge-page")
    try:
        os.ftruncate(fd, _PAGE.size + _WORK.size)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
