"""The terminal side of a chat: whole messages in, text out, Ctrl-C as a callback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from picoedge.cli.output import warn
from picoedge.files import xdg_folder
from picoedge.sanitize import printable

PROMPT = ">>> "
CONTINUATION = "... "
FENCE = '"""'
HISTORY_LINES = 1000


class TerminalConsole:
    """Standard input and output, with line editing and history where Python has readline."""

    def __init__(self) -> None:
        self._history = History(xdg_folder("STATE", os.environ) / "history")

    def read(self) -> str:
        """The next message, of one line or several; a pasted text is one message.

        Raises EOFError or KeyboardInterrupt.
        """
        with self._history.kept():
            return read_message(input)

    def write(self, text: str) -> None:
        """Show text at once."""
        sys.stdout.write(printable(text))
        sys.stdout.flush()

    @contextmanager
    def interrupts(self, on_interrupt: Callable[[], None]) -> Iterator[None]:
        """While the block runs, Ctrl-C calls `on_interrupt` instead of raising."""
        before = signal.signal(signal.SIGINT, lambda number, frame: on_interrupt())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def read_message(ask: Callable[[str], str]) -> str:
    """One message: a line, or the text between two fences of three quotes.

    A text with its fences on lines of their own begins with a line end: it is never a command.
    """
    line = ask(PROMPT)
    if not line.lstrip().startswith(FENCE):
        return line
    text = line.lstrip().removeprefix(FENCE)
    while FENCE not in text:
        text += "\n" + ask(CONTINUATION)
    return text[: text.index(FENCE)]


class History:
    """Typed lines, kept between conversations where there is readline and a writable file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            import readline
        except ImportError:  # a Python built without it still reads lines
            self._readline = None
            return
        self._readline = readline
        readline.parse_and_bind("set enable-bracketed-paste on")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # a conversation is private
            readline.clear_history()
            readline.read_history_file(path)
            if readline.get_current_history_length() > 2 * HISTORY_LINES:
                readline.set_history_length(HISTORY_LINES)
                readline.write_history_file(path)
        except OSError as error:
            self._give_up(error)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Append the lines typed while the block runs to the file."""
        readline = self._readline
        if readline is None:
            yield
            return
        before = readline.get_current_history_length()
        try:
            yield
        finally:
            added = readline.get_current_history_length() - before
            if added > 0 and hasattr(readline, "append_history_file"):
                try:
                    readline.append_history_file(added, self._path)
                except OSError as error:
                    self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        warn(f"{self._path}: {(error.strerror or str(error)).lower()}: no history is kept")
        self._path = Path(os.devnull)
