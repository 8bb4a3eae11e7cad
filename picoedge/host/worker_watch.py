"""What the kernel knows of a worker, whatever it does itself: stopped, at its disk, or running."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def state_of(pid: int, proc: Path = PROC) -> str:
    """ "running", "disk" (a thread waits for storage), "stopped" or "ended"."""
    letters = {_letter(task / "stat") for task in _tasks(proc / str(pid) / "task")}
    if not letters - {"", "Z", "X"}:
        return "ended"
    if letters & {"T", "t"}:
        return "stopped"
    return "disk" if "D" in letters else "running"


def rss_bytes_of(pid: int, proc: Path = PROC) -> int:
    """Bytes of memory it has; 0 where it is gone."""
    try:
        return int((proc / str(pid) / "statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def _tasks(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _letter(stat: Path) -> str:
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
