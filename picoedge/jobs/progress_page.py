"""A page of shared memory on which a worker reports its progress to its daemon.

Memory rather than messages: the daemon can read it while the worker waits for a disk, is stopped,
or computes for seconds.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

STAGES = ("starting", "pulling", "loading", "waiting for work", "computing", "ended", "kept")
_PAGE = struct.Struct("<BxxxIQQQ")  # stage, tokens of the pass, passes, bytes done, bytes in all
_WORK = struct.Struct("<Qddd")  # tokens; seconds of computing, of waiting for sums, for the disk


@dataclass(frozen=True)
class Work:
    """Work done by a worker since it started."""

    tokens: int = 0
    compute_s: float = 0.0
    sync_s: float = 0.0  # waiting for other boards' parts of sums
    disk_s: float = 0.0  # waiting for weights


@dataclass(frozen=True)
class WorkerProgress:
    """The page's content: `tokens` of the pass under way, `passes` so far, bytes of pulling or
    loading that are `done` of a `total`.
    """

    stage: str = STAGES[0]
    tokens: int = 0
    passes: int = 0
    done: int = 0
    total: int = 0
    work: Work = Work()


class ProgressPage:
    """The page at `path`, mapped by the worker, which writes, and by the daemon, which reads."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._page = mmap.mmap(fd, _PAGE.size + _WORK.size)
        finally:
            os.close(fd)

    def write(
        self, stage: str, tokens: int = 0, passes: int = 0, done: int = 0, total: int = 0
    ) -> None:
        """Set the fields of WorkerProgress but `work`."""
        _PAGE.pack_into(self._page, 0, STAGES.index(stage), tokens, passes, done, total)

    def write_work(self, work: Work) -> None:
        """Set `work`."""
        _WORK.pack_into(self._page, _PAGE.size, *astuple(work))

    def clear(self) -> None:
        """As of a process that has just started."""
        self._page[:] = bytes(len(self._page))

    def read(self) -> WorkerProgress:
        """The last values written."""
        stage, tokens, passes, done, total = _PAGE.unpack_from(self._page)
        work = Work(*_WORK.unpack_from(self._page, _PAGE.size))
        stage = STAGES[min(stage, len(STAGES) - 1)]
        return WorkerProgress(stage, tokens, passes, done, total, work)

    def close(self) -> None:
        """Unmap the page."""
        self._page.close()


@contextmanager
def new_page() -> Iterator[Path]:
    """A page of zeros. Its path ends with a descriptor that child processes must inherit.

    It belongs to no file: however the processes end, nothing is left of it.
    """
    fd = os.memfd_create("picoedge-page")
    try:
        os.ftruncate(fd, _PAGE.size + _WORK.size)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
