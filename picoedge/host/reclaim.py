"""Release the memory that starting a program leaves behind, before a model is read.

Starting Python and NumPy pulls some 60 MB through the page cache: libraries whose pages are mapped
but were needed once, and modules that were read and compiled. A control group counts them, and a
board with little memory has better use for them. Pages that are still needed are read again, one
by one.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from picoedge.host.resources import give_back
from picoedge.host.sysfs import PROC, file_text
from picoedge.store.pages import advise_range


def release_pages(warm_up: Callable[[], object], also: Iterable[Path] = ()) -> None:
    """Drop heap, library pages and page cache that only starting needed.

    `warm_up` runs a little of the work to come, so that the library pages it needs are read again
    now and not at the first token. `also`: files that were read and are not needed again.
    """
    give_back()
    mappings = list(_private_mappings(file_text(PROC / "self/smaps")))
    for start, end, _, clean in mappings:
        advise_range(start, end, mmap.MADV_RANDOM)
        if clean:
            advise_range(start, end, mmap.MADV_DONTNEED)
    for path in {path for _, _, path, _ in mappings}.union(_modules(), map(str, also)):
        _drop_cache(path)
    warm_up()
    trim()


def trim(also: Iterable[Path] = ()) -> None:
    """Drop page cache of libraries that no mapping uses.

    The kernel reads code with megabytes around it (since Linux 6.16 whatever madvise says); the
    pages in use are mapped, and stay. `also`: files that were read and are not needed again.
    """
    lines = (line.split(maxsplit=5) for line in file_text(PROC / "self/maps").splitlines())
    mapped = {fields[5] for fields in lines if len(fields) == 6 and fields[5].startswith("/")}
    for path in mapped.union(_modules(), map(str, also)):
        _drop_cache(path)


def _private_mappings(smaps: str) -> Iterator[tuple[int, int, str, bool]]:
    """(start, end, path, clean) of private mappings of files in the text of /proc/PID/smaps.

    Clean: no page was written, so all can be read again. Pages that were written, also before they
    became read-only (relocated tables), are anonymous: a mapping that has any, or may be written,
    is not clean.
    """
    head: list[str] = []  # 55d0-55d4 r-xp 0000 08:02 12 /usr/lib/libc.so.6
    for line in smaps.splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            head = fields
        elif fields[0] == "Anonymous:" and _is_private_file(head):
            start, end = (int(value, 16) for value in head[0].split("-"))
            clean = fields[1] == "0" and "w" not in head[1]
            yield start, end, " ".join(head[5:]), clean


def _is_private_file(head: list[str]) -> bool:
    """Of the fields of a mapping's first line: permissions are the second, the path the sixth."""
    return len(head) > 5 and head[5].startswith("/") and "s" not in head[1]


def _modules() -> Iterator[str]:
    """Files of the Python modules that are loaded, as source and as byte code."""
    for module in list(sys.modules.values()):
        for name in ("__cached__", "__file__"):
            path = getattr(module, name, None)
            if isinstance(path, str):
                yield path


def _drop_cache(path: str) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
