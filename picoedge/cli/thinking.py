"""A model's thinking in an answer, shown dimmed: `<think>…</think>` before the answer proper."""

from __future__ import annotations

_BEGIN, _END = "<think>", "</think>"
_DIM, _NORMAL = "\x1b[2m", "\x1b[22m"


class ThinkingStyle:
    """Adds the terminal's codes to one answer, which comes in pieces.

    Only thinking that an answer begins with counts: a later `<think>` is text about thinking.
    """

    def __init__(self, thinks: bool = False) -> None:
        self._thinks = thinks  # the prompt itself ends with <think>
        self._head: str | None = None if thinks else ""  # None: what it begins with is known
        self._tail = ""

    def begin(self) -> str:
        """Codes before the first piece."""
        return _DIM if self._thinks else ""

    def push(self, piece: str) -> str:
        """The next piece, with codes."""
        shown = ""
        for character in piece:
            shown += character + self._code_after(character)
        return shown

    def _code_after(self, character: str) -> str:
        if self._head is not None:
            self._head = (self._head + character).lstrip()
            if self._head == _BEGIN:
                self._head, self._thinks = None, True
                return _DIM
            if not _BEGIN.startswith(self._head):
                self._head = None
        elif self._thinks:
            self._tail = (self._tail + character)[-len(_END) :]
            if self._tail == _END:
                return self.end()
        return ""

    def end(self) -> str:
        """Codes after the last piece, or after the thinking."""
        thought, self._thinks = self._thinks, False
        return _NORMAL if thought else ""
