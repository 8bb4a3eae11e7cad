"""Memory that a program's start leaves behind, given back before a model is read.

Starting Python and NumPy pulls some 60 MB through the page cache: libraries whose pages are mapped
but were needed once, and modules that were read and compiled. A control group counts them, and a
board with little memory has better use for them. What is still needed comes back, page by page.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from picoedge.store.pages import advise_range

SMAPS = Path("/proc/self/smaps")
MAPS = Path("/proc/self/maps")
STILL_NEEDED = 7 << 20  # bytes that come back: libraries, and what the file system knows of them


@dataclass(frozen=True)
class Mapping:
    """A part of a file that is mapped. `clean`: all its pages are the file's own."""

    start: int
    end: int
    path: str
    clean: bool


def give_back(warm_up: Callable[[], object], also: Iterable[Path] = ()) -> None:
    """Drop what starting left in memory; `also`: files that were read and are not needed again.

    `warm_up` does a little of what is to come, so that what this needs of the libraries is back
    before the rest of the memory is given away.
    """
    gc.collect()
    _trim_heap()
    mappings = list(private_mappings(_text(SMAPS)))
    for mapping in mappings:
        advise_range(mapping.start, mapping.end, mmap.MADV_RANDOM)
        if mapping.clean:
            advise_range(mapping.start, mapping.end, mmap.MADV_DONTNEED)
    for path in {mapping.path for mapping in mappings}.union(_modules(), map(str, also)):
        _forget(path)
    warm_up()
    settle()


def settle(also: Iterable[Path] = ()) -> None:
    """Drop those pages of the libraries that came along with one that was needed.

    `also`: files that were read and are not needed again.

    Code is read with megabytes around it (since Linux 6.16 whatever madvise says); pages that
    are in use are mapped, and stay.
    """
    for path in mapped_files(_text(MAPS)).union(_modules(), map(str, also)):
        _forget(path)


def private_mappings(smaps: str) -> Iterator[Mapping]:
    """Private mappings of files in the text of /proc/PID/smaps.

    Pages that were written, also before they became read-only (relocated tables), are anonymous:
    a mapping that has any, or may be written, is not clean.
    """
    head: list[str] = []
    for line in smaps.splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            head = fields
        elif fields[0] == "Anonymous:" and _is_private_file(head):
            start, end = (int(value, 16) for value in head[0].split("-"))
            clean = fields[1] == "0" and "w" not in head[1]
            yield Mapping(start, end, " ".join(head[5:]), clean)


def _is_private_file(head: list[str]) -> bool:
    """Of `55d0-55d4 r-xp 0000 08:02 12 /usr/lib/libc.so.6`, in words."""
    return len(head) > 5 and head[5].startswith("/") and "s" not in head[1]


def mapped_files(maps: str) -> set[str]:
    """Files in the text of /proc/PID/maps."""
    lines = (line.split(maxsplit=5) for line in maps.splitlines())
    return {fields[5] for fields in lines if len(fields) == 6 and fields[5].startswith("/")}


def _modules() -> Iterator[str]:
    for module in list(sys.modules.values()):
        for name in ("__cached__", "__file__"):
            path = getattr(module, name, None)
            if isinstance(path, str):
                yield path


def _forget(path: str) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _trim_heap() -> None:
    """Give free memory of the C heap back to the system, where the C library can."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return ""
