"""Ends of processes: with the parent, or before others when memory is short."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_GOES_FIRST = 900  # of 1000: before any program of the user's


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, in any way.

    `parent` is its process: if it has ended by now, this one ends at once. 0: not known.
    """
    with suppress(AttributeError, OSError):  # Linux alone has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent and os.getppid() != parent:
        os._exit(1)


def set_goes_first(pid: int, *, first: bool) -> None:
    """Whether the kernel ends that process before others when memory is short, or as this one."""
    with suppress(OSError):  # it has ended, or is not ours
        own = Path("/proc/self/oom_score_adj").read_text()
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(_GOES_FIRST) if first else own)
