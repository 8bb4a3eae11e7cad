"""What the kernel counts for a process, ours or a worker's: memory, reads, whether it runs."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from picoedge.host.sysfs import PROC, file_fields, file_text

_PAGE = os.sysconf("SC_PAGE_SIZE")


def peak_rss_bytes(status: Path = Path("/proc/self/status")) -> int:
    """The largest resident size of this process so far.

    VmHWM is of this program alone; `ru_maxrss`, used where /proc is missing, may remember the
    larger parent that started it.
    """
    kilobytes = _number(status, "VmHWM")
    if kilobytes is not None:
        return kilobytes * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rss_bytes(status: Path = Path("/proc/self/status")) -> int:
    """The resident size of this process now; where /proc is missing, its largest so far."""
    kilobytes = _number(status, "VmRSS")
    return kilobytes * 1024 if kilobytes is not None else peak_rss_bytes(status)


def storage_bytes_read(io: Path = Path("/proc/self/io")) -> int | None:
    """Bytes read from storage for this process; None where the kernel does not count them."""
    return _number(io, "read_bytes")


def rss_bytes_of(pid: int, proc: Path = PROC) -> int:
    """The resident size of process `pid`; 0 where it has ended."""
    words = file_text(proc / str(pid) / "statm").split()
    return int(words[1]) * _PAGE if len(words) > 1 else 0


def state_of(pid: int, proc: Path = PROC) -> str:
    """ "running", "disk" (a thread waits for storage), "stopped" or "ended"."""
    states = {_thread_state(stat) for stat in (proc / str(pid) / "task").glob("*/stat")}
    if not states - {"", "Z", "X"}:
        return "ended"
    if states & {"T", "t"}:
        return "stopped"
    return "disk" if "D" in states else "running"


def _thread_state(stat: Path) -> str:
    """The letter behind the command of `12 (my (odd) name) S 1 …`; "" where it has ended."""
    return file_text(stat).rpartition(")")[2].strip()[:1]


def _number(file: Path, key: str) -> int | None:
    words = file_fields(file).get(key, "").split()
    return int(words[0]) if words else None
