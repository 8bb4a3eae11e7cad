"""The terminal side of a chat: whole messages in, text out, Ctrl-C as a callback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from picoedge.chats.conversation import encodable
from picoedge.cli.await_typing import Attend, await_typing
from picoedge.cli.output import warn, write_answer
from picoedge.cli.thinking import ThinkingStyle
from picoedge.files import make_folder, xdg_folder
from picoedge.sanitize import printable

PROMPT = ">>> "
CONTINUATION = "... "
FENCE = '"""'
HISTORY_LINES = 1000


class Console(Protocol):
    """The place of a chat: a terminal, or a pipe."""

    def read(self, attend: Attend | None) -> str:
        """The next message; `attend` is called now and then until it is typed.

        Raises EOFError or KeyboardInterrupt, and what `attend` raises.
        """

    def write(self, text: str) -> None:
        """Show text at once."""

    def say(self, line: str) -> None:
        """A line of this program."""

    def begin_answer(self, thinks: bool) -> None:
        """An answer comes next; `thinks`: it is in the middle of thinking."""

    def interrupts(self, on_interrupt: Callable[[], None]) -> AbstractContextManager[None]:
        """While the block runs, Ctrl-C calls `on_interrupt`."""


class TerminalConsole:
    """Standard input and output, with line editing and history where Python has readline."""

    def __init__(self, keep_history: bool = True) -> None:
        kept = xdg_folder("STATE", os.environ) / "history" if keep_history else Path(os.devnull)
        self._history = History(kept)
        self._style: ThinkingStyle | None = None

    def read(self, attend: Attend | None) -> str:
        """The next message, of one line or several; a pasted text is one message.

        Raises EOFError or KeyboardInterrupt, and what `attend` raises.
        """
        if attend is not None:
            await_typing(PROMPT, attend)
        with self._history.kept():
            return encodable(read_message(input))

    def begin_answer(self, thinks: bool) -> None:
        """An answer comes next, whose thinking is shown dimmed."""
        self._style = ThinkingStyle(thinks) if takes_codes(os.environ) else None
        self._show(self._style.begin() if self._style else "")

    def write(self, text: str) -> None:
        """Show text of an answer at once."""
        text = printable(text)
        self._show(self._style.push(text) if self._style else text)

    def say(self, line: str) -> None:
        """A line of this program."""
        codes = self._style.end() if self._style else ""
        self._style = None
        self._show(codes + printable(line) + "\n")

    def _show(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    @contextmanager
    def interrupts(self, on_interrupt: Callable[[], None]) -> Iterator[None]:
        """While the block runs, Ctrl-C calls `on_interrupt` instead of raising."""
        before = signal.signal(signal.SIGINT, lambda number, frame: on_interrupt())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class PipeConsole:
    """Standard output for one answer of a conversation; other lines go to stderr."""

    def read(self, attend: Attend | None) -> str:
        """Nothing is asked."""
        raise EOFError

    def begin_answer(self, thinks: bool) -> None:
        """Nothing is dimmed."""

    def write(self, text: str) -> None:
        """Show text at once."""
        write_answer(text)

    def say(self, line: str) -> None:
        """A line of this program; an empty one ends the answer's."""
        if line:
            warn(line)
        else:
            write_answer("\n")

    @contextmanager
    def interrupts(self, on_interrupt: Callable[[], None]) -> Iterator[None]:
        """Ctrl-C ends the program, as for any that answers once."""
        yield


def takes_codes(environ: Mapping[str, str]) -> bool:
    """Whether the terminal of stdout dims text."""
    plain = environ.get("TERM", "dumb") == "dumb" or environ.get("NO_COLOR")
    return not plain and sys.stdout.isatty()


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
            make_folder(path.parent)
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
