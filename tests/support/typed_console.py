"""A console without a terminal: the typed lines come from a list."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from picoedge.cli.await_typing import Attend
from picoedge.cli.chat_console import read_message

Typed = str | type[BaseException]


class TypedConsole:
    """Reads from a list; the transcript holds what a terminal would show."""

    def __init__(self, typed: Sequence[Typed], interrupt_at: str = "") -> None:
        self.transcript = ""
        self._typed = iter(typed)
        self._interrupt_at = interrupt_at  # Ctrl-C when this piece of an answer appears
        self._interrupt: Callable[[], None] = lambda: None

    def read(self, attend: Attend | None) -> str:
        return read_message(self._ask)

    def _ask(self, prompt: str) -> str:
        self.transcript += prompt
        line = next(self._typed, EOFError)
        if not isinstance(line, str):
            raise line
        self.transcript += line + "\n"
        return line

    def write(self, text: str) -> None:
        self.transcript += text
        if text == self._interrupt_at:
            self.transcript += "^C"
            self._interrupt()

    def begin_answer(self, thinks: bool) -> None:
        pass

    def say(self, line: str) -> None:
        self.write(line + "\n")

    @contextmanager
    def interrupts(self, on_interrupt: Callable[[], None]) -> Iterator[None]:
        self._interrupt = on_interrupt
        yield
