"""A prompt at which work goes on until something is typed."""

from __future__ import annotations

import os
import select
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

Attend = Callable[[Callable[[], None]], None]
"""Work at a prompt. It calls its argument before it writes lines, which clears the prompt."""

ATTEND_S = 2.0  # between two calls: boards that come back are used a moment later
_PASTES_MARKED, _CLEARED = "\x1b[?2004h", "\x1b[K"


def await_typing(prompt: str, attend: Attend) -> None:
    """Show `prompt`, and call `attend` every ATTEND_S until something is typed.

    What is typed stays for the next read, which shows the prompt in the same place again. Returns
    at once where standard input is no terminal. Raises what `attend` raises.
    """
    stdin, is_dumb = sys.stdin.fileno(), os.environ.get("TERM", "dumb") == "dumb"
    with _unread_keys(stdin) as set_mode:
        if set_mode is None:
            return
        # The first key may be a pasted text, which is marked as one only if that is asked for.
        shown = prompt if is_dumb else _PASTES_MARKED + prompt
        cleared = True

        def clear() -> None:
            nonlocal cleared
            if not cleared:
                _write("\r" if is_dumb else "\r" + _CLEARED)
            cleared = True

        while set_mode():  # each time, as a shell sets its own while a job is stopped
            if cleared:
                _write(shown)
                cleared = False
            if select.select([stdin], [], [], ATTEND_S)[0]:
                return _write("\r")
            attend(clear)


@contextmanager
def _unread_keys(stdin: int) -> Iterator[Callable[[], bool] | None]:
    """Keys are not shown, and can be waited for one by one, once the yielded function is called.

    It returns False where the terminal is gone.
    """
    if not os.isatty(stdin):
        yield None
        return
    before = termios.tcgetattr(stdin)
    during = [*before[:3], before[3] & ~(termios.ICANON | termios.ECHO), *before[4:]]

    def set_mode(mode: list[Any]) -> bool:
        with suppress(termios.error):
            termios.tcsetattr(stdin, termios.TCSANOW, mode)
            return True
        return False

    try:
        yield partial(set_mode, during)
    finally:
        set_mode(before)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
