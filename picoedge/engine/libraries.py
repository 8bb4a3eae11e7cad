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
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from picoedge.store.pages import advise_range

SMAPS = Path("/proc/self/smaps")
STILL_NEEDED = 4 << 20  # bytes of libraries that decoding comes back to, measured


@dataclass(frozen=True)
class Mapping:
    """A part of a file that is mapped and never written: its pages can be read again."""

    start: int
    end: int
    path: str


def give_back(also: Iterable[Path] = ()) -> None:
    """Drop what starting left in memory; `also`: files that were read and are not needed again."""
    gc.collect()
    _trim_heap()
    mappings = list(read_only_mappings(_text(SMAPS)))
    for mapping in mappings:
        # Without the advice each page that is needed again would bring megabytes with it.
        advise_range(mapping.start, mapping.end, mmap.MADV_RANDOM)
        advise_range(mapping.start, mapping.end, mmap.MADV_DONTNEED)
    paths = {mapping.path for mapping in mappings} | set(_modules()) | {str(path) for path in also}
    for path in paths:
        _forget(path)


def read_only_mappings(smaps: str) -> Iterator[Mapping]:
    """Mappings of /proc/PID/smaps whose pages are all the file's own.

    Pages that were written before they became read-only (relocated tables) are anonymous: a
    mapping that has any is left alone.
    """
    found: Mapping | None = None
    for line in smaps.splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            found = _mapping(fields)
        elif fields[0] == "Anonymous:" and found is not None and fields[1] == "0":
            yield found


def _mapping(fields: list[str]) -> Mapping | None:
    """`55d0-55d4 r-xp 0000 08:02 12 /usr/lib/libc.so.6`, where it is read only and of a file."""
    if len(fields) < 6 or "w" in fields[1] or "s" in fields[1] or not fields[5].startswith("/"):
        return None
    start, end = (int(value, 16) for value in fields[0].split("-"))
    return Mapping(start, end, " ".join(fields[5:]))


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
