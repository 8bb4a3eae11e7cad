"""Signals that end a program: what they interrupt cleans up, as with Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

Printer = Callable[[Any], None]
ENDING = (signal.SIGTERM, signal.SIGHUP)  # asked to end; the terminal, or its connection, is closed
_LATER_S = 0.01


class Terminated(SystemExit):
    """A signal of ENDING arrived. Its exit code is that of a shell's: 128 + number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class _Ending:
    """The handler of ENDING: it raises once. The shell and the kernel both send a signal, and the
    second must not interrupt what the first one cleans up.

    It stays the handler: Python prints a traceback for a signal that is ignored from within one.
    And it raises again where what was raised has not left the very place yet: a call of C, such as
    `input`, may look for signals twice, and must find an exception both times. With the first one
    still pending nothing may be called here, not even a class.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self._raised: Terminated | None = None
        self._frame: FrameType | None = None
        self._instruction = -1

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.has_begun:
            self.has_begun, self._frame = True, frame
            self._instruction = -1 if frame is None else frame.f_lasti
            self._raised = Terminated(number)
            raise self._raised
        if frame is not None and frame is self._frame and frame.f_lasti == self._instruction:
            assert self._raised is not None
            raise self._raised

    def redeliver(self, lost: Any, print_it: Printer = sys.__unraisablehook__) -> None:
        """Repeat a signal whose exception came to nothing because it was raised in a finalizer."""
        error = lost.exc_value
        if not isinstance(error, KeyboardInterrupt | Terminated):
            return print_it(lost)
        while error is not None:  # on a busy machine the repetition may come within this call
            error = self._repeat(error)

    def _repeat(self, error: BaseException) -> BaseException | None:
        try:
            if isinstance(error, Terminated):
                self.has_begun = False
            _later(signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
        except (KeyboardInterrupt, Terminated) as again:
            return again
        return None


def raise_on_signals() -> None:
    """Have signals of ENDING raise Terminated in the main thread, once, and Ctrl-C not be lost.

    A signal that is ignored, as for a job of nohup, stays so.
    """
    ending = _Ending()
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, ending)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = ending.redeliver


class StopRequest:
    """While the block runs, a signal asks for an end, and work ends where that is right.

    The number of the first signal is in `number`. Ctrl-C after it ends the process at once; further
    signals of ENDING, which shell and kernel may both send, do not. Ignored signals stay so.
    """

    def __init__(self, message: str) -> None:
        """`message` is written to stderr with the first signal."""
        self.number: int | None = None
        self._message = f"\n{message}\n".encode()
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether an end was asked for."""
        return self.number is not None

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, *ENDING):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            if number == signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.number = number
        with suppress(OSError):  # the terminal is gone
            os.write(2, self._message)  # a print may have been interrupted


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
