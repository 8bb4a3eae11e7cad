"""Memory pages and page cache: allocate, read ahead, release (madvise, fadvise)."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import threading
from collections.abc import Callable
from functools import cache
from typing import cast

import numpy as np

from picoedge.files import no_memory
from picoedge.kernels.arrays import U8
from picoedge.store.shards import Unit
from picoedge.units import format_size

PAGE = mmap.PAGESIZE
_HUGE = 2 << 20  # a huge page; also the largest folio of the page cache
_POPULATE_READ = 22  # Linux 5.14


def page_down(n: int) -> int:
    """The page boundary at or before byte `n`."""
    return n // PAGE * PAGE


def page_up(n: int) -> int:
    """The page boundary at or after byte `n`."""
    return -(-n // PAGE) * PAGE


def page_range(unit: Unit) -> tuple[int, int]:
    """File range [start, end) of the whole pages that the unit lies in."""
    return page_down(unit.offset), page_up(unit.end)


def anonymous(nbytes: int) -> U8:
    """Zeroed anonymous memory, page-aligned, in huge pages where the system has them.

    Aligned to a huge page, with small pages for the remainder: the alignment costs address space,
    no memory. Raises MemoryBudgetError.
    """
    huge = nbytes // _HUGE * _HUGE
    size = nbytes + _HUGE if huge else max(nbytes, PAGE)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:  # RLIMIT_AS, or the system is out of memory
        raise no_memory(format_size(nbytes)) from error
    if not huge:
        return np.frombuffer(memory, np.uint8, nbytes)
    first = -np.frombuffer(memory, np.uint8).ctypes.data % _HUGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            memory.madvise(mmap.MADV_HUGEPAGE, first, huge)
    return np.frombuffer(memory, np.uint8, nbytes, first)


def advise(array: U8, advice: int) -> int:
    """madvise over the pages of `array`. Returns 0 or errno."""
    start, nbytes = array.ctypes.data, array.nbytes
    return advise_range(page_down(start), page_up(start + nbytes), advice)


def advise_range(start: int, end: int, advice: int) -> int:
    """madvise over an address range of whole pages. Returns 0 or errno."""
    if _madvise()(start, end - start, advice) == 0:
        return 0
    return ctypes.get_errno()


def forget_anonymous(array: U8) -> None:
    """Free the pages of a part of anonymous memory."""
    advise(array, mmap.MADV_DONTNEED)


def populate(array: U8) -> int:
    """Read and map the pages of a file-backed array. Returns 0 or errno.

    EFAULT: the file was truncated or the storage failed. EINVAL: a kernel before 5.14.
    """
    return advise(array, _POPULATE_READ)


def forget_mapped(array: U8, start: int, end: int) -> None:
    """Unmap the pages in which bytes [start, end) of a mapped file begin; access maps them anew."""
    first, last = page_down(start), page_down(end)
    if last > first:
        advise(array[first:last], mmap.MADV_DONTNEED)


def forget_cached(fd: int, start: int, end: int) -> None:
    """Drop a range of a file from the page cache.

    The cache drops only folios that lie wholly inside the range. So the range begins one folio
    earlier, to include the folio that the previous call's end cut.
    """
    first = max(0, page_down(start) - _HUGE)
    with contextlib.suppress(OSError):  # a file system without a page cache
        os.posix_fadvise(fd, first, page_up(end) - first, os.POSIX_FADV_DONTNEED)


@cache
def end_where_pages_are_lost(line: str) -> Callable[[int], None]:
    """Handle SIGBUS, raised by a mapped page that cannot be read: print `line`, exit with 1.

    The file was truncated or the card pulled out. A handler in Python would not do: it runs after
    the faulting instruction, which never completes.
    """

    ended = threading.Lock()  # several threads may fault: one prints

    def end(number: int) -> None:
        ended.acquire()
        os.write(2, f"{line}\n".encode())
        os._exit(1)

    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    handler = kind(end)
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = [ctypes.c_int, kind], ctypes.c_void_p
    install(signal.SIGBUS, handler)
    return cast("Callable[[int], None]", handler)  # @cache keeps it alive


@cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return cast("Callable[[int, int, int], int]", function)
