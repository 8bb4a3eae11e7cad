"""Signals that end a program: what they interrupt cleans up, as with Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGHUP)  # asked to end; the terminal, or its connection, is closed
_LATER_S = 0.01


class Terminated(SystemExit):
    """A signal of ENDING arrived. Its exit code is that of a shell's: 128 + number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


def raise_on_signals() -> None:
    """Have signals of ENDING raise Terminated in the main thread, once, and Ctrl-C not be lost.

    A signal that is ignored, as for a job of nohup, stays so.
    """
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = _redeliver


def _end(number: int, frame: FrameType | None) -> None:
    for other in ENDING:  # the shell and the kernel both send one; cleaning up goes on
        signal.signal(other, signal.SIG_IGN)
    raise Terminated(number)


def _redeliver(lost: Any, print_it: Any = sys.__unraisablehook__) -> None:
    """Repeat a signal whose exception came to nothing because it was raised in a finalizer."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        _later(signal.SIGINT)
    elif isinstance(lost.exc_value, Terminated):
        signal.signal(signal.SIGTERM, _end)
        _later(signal.SIGTERM)
    else:
        print_it(lost)


def _later(number: int) -> None:
    def kill() -> None:
        time.sleep(_LATER_S)  # until the finalizer has returned
        os.kill(os.getpid(), number)

    threading.Thread(target=kill, daemon=True).start()


def restore_defaults() -> None:
    """From now on signals end the process as they do any: only the interpreter's end is left."""
    for number in (*ENDING, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
