"""A program on a pseudo-terminal: keys as they are pressed, signals as they arrive."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CTRL_C, CTRL_D, UP, ENTER = "\x03", "\x04", "\x1b[A", "\r"
PASTE_BEGINS, PASTE_ENDS = "\x1b[200~", "\x1b[201~"
LIMIT_S = 30
NUDGE_S = 0.5


def take_terminal() -> None:
    """Make it the process's own, so that Ctrl-C becomes SIGINT and its end SIGHUP."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A program on a pseudo-terminal, whose screen is read and whose keys are pressed."""

    def __init__(self, state: Path, command: Sequence[str | Path]) -> None:
        self._master, slave = os.openpty()
        environ = {**os.environ, "XDG_STATE_HOME": str(state), "TERM": "xterm", "HOME": str(state)}
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environ["PYTHONPATH"] = os.pathsep.join(path)
        environ.pop("INPUTRC", None)
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True,
            preexec_fn=take_terminal,
        )  # fmt: skip
        os.close(slave)
        self.screen = ""

    def press(self, keys: str) -> None:
        self.press_bytes(keys.encode())

    def press_bytes(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def settings(self) -> list[Any]:
        """The terminal's settings, as `termios.tcgetattr` gives them."""
        return termios.tcgetattr(self._master)

    def hang_up(self) -> None:
        """Close the terminal, as when its window or its connection is closed."""
        self.screen = ""
        os.close(self._master)
        self._master = -1

    def until(self, text: str) -> str:
        """Read on until `text` has come; what came before it since the last time."""
        end = time.monotonic() + LIMIT_S
        while text not in self.screen:
            if not self._more(end - time.monotonic()):
                pytest.fail(f"no {text!r} in {self.screen!r}")
        seen, _, self.screen = self.screen.partition(text)
        return seen

    def exit_code(self) -> int:
        end = time.monotonic() + LIMIT_S
        while self._more(end - time.monotonic()):
            pass
        return self.process.wait(LIMIT_S)

    def _more(self, left_s: float) -> bool:
        """Read once; False where nothing comes any more."""
        end = time.monotonic() + left_s
        while not select.select([self._master], [], [], NUDGE_S)[0]:
            if time.monotonic() > end:
                return False
            self._nudge()
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux: the other end is closed
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)

    def _nudge(self) -> None:
        """Resize the window, which changes nothing but wakes Python's readline.

        It sleeps through a Ctrl-C of the very microseconds between its prompt and its wait
        (CPython's readline_until_enter_or_signal), which a loaded machine makes long.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGWINCH)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._master >= 0:
            os.close(self._master)
