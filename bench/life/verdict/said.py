"""What must not stand on any terminal or in any log. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

# What a terminal is asked for on purpose: an emptied line, marks around pasted text.
_WANTED = re.compile(rb"\x1b\[K|\x1b\[\?2004[hl]")
_CONTROL = re.compile(rb"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f]")
_BAD = (
    b"Traceback (most recent",
    b"defect of picoedge",
    b"Segmentation fault",
    b"Exception ignored",
)


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
