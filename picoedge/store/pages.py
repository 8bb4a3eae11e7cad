"""Pages of memory and of the page cache: asked for ahead of use, and given back after it."""

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

from picoedge.kernels.arrays import U8
from picoedge.store.reads import no_memory
from picoedge.units import format_size

PAGE = mmap.PAGESIZE
_HUGE = 2 << 20  # the largest run of pages the page cache keeps as one
_POPULATE_READ = 22  # Linux 5.14


def page_down(n: int) -> int:
    """The page boundary at or before byte `n`."""
    return n // PAGE * PAGE


def page_up(n: int) -> int:
    """The page boundary at or after byte `n`."""
    return -(-n // PAGE) * PAGE


def anonymous(nbytes: int) -> U8:
    """Zeroed memory of our own, page-aligned, in huge pages where the system has them.

    It begins where a huge page may, and what is left over at its end is in small ones: address
    space is spent for that, and no memory. Raises MemoryBudgetError.
    """
    huge = nbytes // _HUGE * _HUGE
    size = nbytes + _HUGE if huge else max(nbytes, PAGE)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:  # a limit of address space, or the system's own
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
    """madvise over the pages that `array` touches. Returns 0, or the error number."""
    start, nbytes = array.ctypes.data, array.nbytes
    return advise_range(page_down(start), page_up(start + nbytes), advice)


def advise_range(start: int, end: int, advice: int) -> int:
    """madvise over whole pages, by address. Returns 0, or the error number."""
    if _madvise()(start, end - start, advice) == 0:
        return 0
    return ctypes.get_errno()


def forget_anonymous(array: U8) -> None:
    """Free the pages of memory of our own, as of a part of what was made in one piece."""
    advise(array, mmap.MADV_DONTNEED)


def populate(array: U8) -> int:
    """Map the pages of a file-backed array, reading what is not in memory; 0, or the error number.

    EFAULT: the file has become shorter, or the storage cannot be read. EINVAL: an old kernel.
    """
    return advise(array, _POPULATE_READ)


def forget_mapped(array: U8, start: int, end: int) -> None:
    """Unmap the pages that bytes [start, end) of a mapped file begin in; they can be read again."""
    first, last = page_down(start), page_down(end)
    if last > first:
        advise(array[first:last], mmap.MADV_DONTNEED)


def forget_cached(fd: int, start: int, end: int) -> None:
    """Drop a range of a file from the page cache.

    The cache keeps runs of pages as one, and drops those only that lie within the range: it begins
    earlier, so that a run which the last call cut goes with this one.
    """
    first = max(0, page_down(start) - _HUGE)
    with contextlib.suppress(OSError):  # a file system that keeps no such cache
        os.posix_fadvise(fd, first, page_up(end) - first, os.POSIX_FADV_DONTNEED)


@cache
def end_where_pages_are_lost(line: str) -> Callable[[int], None]:
    """From now on a mapped page that cannot be read ends the process: this line, exit code 1.

    Such a page (of a file that was cut, a card that was pulled out) is a signal to whichever
    thread wants it. There is nothing to go on with: Python's own handlers would wait for the
    instruction to end, and it never does.
    """

    ended = threading.Lock()  # of several threads that meet lost pages, one tells of it

    def end(number: int) -> None:
        ended.acquire()
        os.write(2, f"{line}\n".encode())
        os._exit(1)

    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    handler = kind(end)
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = [ctypes.c_int, kind], ctypes.c_void_p
    install(signal.SIGBUS, handler)
    return cast("Callable[[int], None]", handler)  # kept, as the cache keeps it


@cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return cast("Callable[[int, int, int], int]", function)
