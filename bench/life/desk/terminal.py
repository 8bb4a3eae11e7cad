"""A conversation on a pseudo-terminal: what a person types, and what the person sees."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from bench.life.desk.transcript import PROMPT, Shown, shown
from hw.lab import Board

COLUMNS = 1000  # no line is wrapped: the screen shows lines as written
LEAVE_S, JOIN_S = 10.0, 5.0


class Screen:
    """Output of one terminal, with the time of each piece."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", 50, COLUMNS, 0, 0))
        self._changed = threading.Condition()
        self._text = b""
        self._times: list[tuple[int, float]] = []  # (length until then, monotonic)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 1 << 16)
            except OSError:  # the last process on it has ended, or it is closed
                data = b""
            with self._changed:
                self._text += data
                self._times.append((len(self._text), time.monotonic()))
                self._changed.notify_all()
            if not data:
                return

    @property
    def raw(self) -> bytes:
        """All of it until now."""
        with self._changed:
            return self._text

    def wait(self, since: int, shows: Any, deadline: float) -> bool:
        """Until `shows(the text since)` is true; False at the deadline (monotonic)."""
        with self._changed:
            while not shows(self._text[since:].decode(errors="replace")):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 1.0))
            return True

    def time_of(self, length: int) -> float | None:
        """When it first was longer than that."""
        with self._changed:
            return next((at for until, at in self._times if until > length), None)

    def give_away(self) -> None:
        """The far end belongs to the command alone."""
        os.close(self.slave)

    def close(self) -> None:
        """Once the command has ended. Idempotent."""
        self._thread.join(JOIN_S)
        with suppress(OSError):
            os.close(self.master)
        self.master = -1


class Terminal:
    """A command on a board, typed on a terminal; its messages go to a second one."""

    def __init__(
        self, board: Board, command: Sequence[str], env: Mapping[str, str], question: str = ""
    ) -> None:
        self._question, self._asked_at, self.asked_s = question, 0, time.monotonic()
        self.out, self.err = Screen(), Screen()
        words = [sys.executable, "-m", "bench.life.desk.on_terminal", *command]
        self.process: subprocess.Popen[Any] = board.start(
            words, env={**env, "TERM": "dumb"}, stdin=self.out.slave, stdout=self.out.slave,
            stderr=self.err.slave,
        )  # fmt: skip
        for screen in (self.out, self.err):
            screen.give_away()

    @property
    def is_running(self) -> bool:
        """Whether the command runs."""
        return self.process.poll() is None

    @property
    def has_prompt(self) -> bool:
        """Whether it has asked for a message."""
        return PROMPT.encode() in self.out.raw

    def await_prompt(self, deadline: float, since: int = 0) -> bool:
        """Whether it asks for a message in time, after so many bytes of output; False as well
        where it has ended.
        """

        def shows(text: str) -> bool:
            return text.endswith(PROMPT) or not self.is_running

        ready = self.out.wait(since, shows, deadline)
        return ready and self.is_running

    def first_answer(self) -> Shown:
        """What it answered by itself before the first prompt, to the question of before."""
        text = self.out.raw.decode(errors="replace")
        began = text.find(PROMPT + self._question)
        return shown(self._question, text[began:]).timed(None, time.monotonic() - self.asked_s)

    def send(self, text: str) -> None:
        """Type a line; what comes next is its answer."""
        self._question, self._asked_at = text, len(self.out.raw)
        self.asked_s = time.monotonic()
        self.type(text.encode() + b"\n")

    def type(self, keys: bytes) -> None:
        """Press keys."""
        with suppress(OSError):
            os.write(self.out.master, keys)

    def answer(self, timeout_s: float) -> Shown:
        """What the line that was sent last brought, once the next prompt is there."""

        def shows(text: str) -> bool:
            return shown(self._question, text).is_complete or not self.is_running

        self.out.wait(self._asked_at, shows, self.asked_s + timeout_s)
        text = self.out.raw[self._asked_at :].decode(errors="replace")
        found = shown(self._question, text)
        first = self.out.time_of(self._asked_at + found.echo_bytes)
        first_s = None if first is None or not found.text else first - self.asked_s
        return found.timed(first_s, time.monotonic() - self.asked_s)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.type(b"\x03")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it, if it runs."""
        if self.is_running:
            self.process.send_signal(number)

    def leave(self) -> int | None:
        """Type /bye; the exit code, None where it had to be killed."""
        self.type(b"/bye\n")
        try:
            return self.process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.close()

    def close(self) -> None:
        """Kill it and let go of the terminals. Idempotent."""
        self.process.kill()
        self.process.wait()
        for screen in (self.out, self.err):
            screen.close()
