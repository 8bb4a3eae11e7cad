"""Signals to processes that may be gone by now."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def is_running(pid: int) -> bool:
    """Whether a thread of it runs or could: none of a stopped process does, nor in disk sleep."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            state = stat.read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state in "RS":
            return True
    return False


def kill_group(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to a session's first process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
