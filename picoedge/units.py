"""Sizes in bytes and spans of time, as people write and read them."""

from __future__ import annotations

import re

from picoedge.errors import UsageError

MB = 1 << 20
_SIZE = re.compile(r"^\s*(\d{1,30}(?:\.\d{1,30})?)\s*([kmgt]?)i?b?\s*$", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SPAN = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([smhd]?)\s*", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_size(text: str) -> int:
    """Bytes meant by `400M`, `1.5G`, `2048`; powers of 1024. Raises UsageError."""
    match = _SIZE.match(text)
    if match is None:
        raise UsageError(f"not a size: {text!r}", "write it like 400M or 1.5G")
    return int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])


def parse_span(text: str) -> float:
    """Seconds meant by `10m`, `90s`, `1.5h`, `2d` or `90`. Raises UsageError."""
    match = _SPAN.fullmatch(text)
    if match is None:
        raise UsageError(f"not a span of time: {text!r}", "write it like 90s, 10m or 1.5h")
    return float(match[1]) * _SECONDS[match[2].lower()]


def format_span(seconds: float) -> str:
    """`48 s`, `7 min`, `3 h`, `2 d`: rounded down."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def format_size(n_bytes: float) -> str:
    """`93.8 MB`, `1.2 GB`: three figures, powers of 1024."""
    value = float(n_bytes)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
