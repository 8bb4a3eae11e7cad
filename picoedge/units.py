"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import re

from picoedge.errors import UsageError

MB = 1 << 20
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*$", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int:
    """Bytes meant by `400M`, `1.5G`, `2048`; powers of 1024. Raises UsageError."""
    match = _SIZE.match(text)
    if match is None:
        raise UsageError(f"not a size: {text!r}", "write it like 400M or 1.5G")
    return int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])


def format_size(n_bytes: float) -> str:
    """`93.8 MB`, `1.2 GB`: three figures, powers of 1024."""
    value = float(n_bytes)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
