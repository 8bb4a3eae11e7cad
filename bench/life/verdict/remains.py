"""What a life leaves behind when all has ended, and what it said that it should not have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.life.boards import LifeBoard

SEGMENTS = Path("/dev/shm")
# What a terminal is asked for on purpose: an emptied line, marks around pasted text.
_WANTED = re.compile(rb"\x1b\[K|\x1b\[\?2004[hl]")
_CONTROL = re.compile(rb"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f]")
_BAD = (
    b"Traceback (most recent",
    b"defect of picoedge",
    b"Segmentation fault",
    b"Exception ignored",
)


def segments() -> set[str]:
    """Segments of shared memory on this machine."""
    return {path.name for path in SEGMENTS.glob("*")} if SEGMENTS.is_dir() else set()


def left_behind(boards: Sequence[LifeBoard], before: set[str]) -> list[str]:
    """Processes, sockets, segments and partial files, once daemons and chats have ended."""
    found = [f"segment {name}" for name in sorted(segments() - before) if "picoedge" in name]
    for each in boards:
        found += [f"{each.board.name}: process {_words(pid)}" for pid in each.board.pids()]
        for path in sorted(each.board.folder.rglob("*")):
            if path.name.startswith(".partial-") or path.is_socket() or path.suffix == ".new":
                found.append(f"{each.board.name}: {path.relative_to(each.board.folder)}")
    return found


def _words(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return str(pid)
    return b" ".join(words[:6]).decode(errors="replace")


def bad_words(name: str, text: bytes) -> list[str]:
    """Tracebacks, defects and raw control characters in what was said."""
    found = [f"{name}: {_around(text, text.index(bad))}" for bad in _BAD if bad in text]
    plain = _WANTED.sub(b"", text)
    control = _CONTROL.search(plain)
    if control is not None:
        found.append(f"{name}: control character: {_around(plain, control.start())}")
    return found


def _around(text: bytes, at: int) -> str:
    return repr(text[max(0, at - 80) : at + 400].decode(errors="replace"))


def all_bad_words(texts: Iterable[tuple[str, bytes]]) -> list[str]:
    """Of all that was said, by name."""
    return [bad for name, text in texts for bad in bad_words(name, text)]
