"""What this process has used so far, as the system counts it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_rss_bytes(status: Path = Path("/proc/self/status")) -> int:
    """The largest resident size of this process; where Linux does not say, getrusage's.

    VmHWM is of this program alone; `ru_maxrss` may remember the larger parent that started it.
    """
    value = _field(status, "VmHWM:")
    if value is not None:
        return value * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rss_bytes(status: Path = Path("/proc/self/status")) -> int:
    """The resident size of this process now; where Linux does not say, its largest so far."""
    value = _field(status, "VmRSS:")
    return value * 1024 if value is not None else peak_rss_bytes(status)


def storage_bytes_read(io: Path = Path("/proc/self/io")) -> int | None:
    """Bytes fetched from storage on behalf of this process; None where it is not counted."""
    return _field(io, "read_bytes:")


def _field(file: Path, key: str) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), None)
