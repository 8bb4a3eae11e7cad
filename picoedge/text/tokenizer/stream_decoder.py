"""Incremental decoding of generated tokens: whole characters, cut at stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol


class Vocabulary(Protocol):
    """The part of a tokenizer that decodes answers."""

    eos_ids: frozenset[int]
    """tokens that end an answer: end of sequence, of text, of turn"""
    drops_first_space: bool
    """whether the tokenizer puts a space before a text, to be dropped when decoding"""

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token: the name of a special token, b"" for an unknown id."""

    def is_special(self, token: int) -> bool:
        """Whether it is a control token, not part of a text."""


class StreamDecoder:
    """Turns token ids into text one at a time, never half a character.

    All parts joined equal `tokenizer.decode` of the ids. `start_of_text=False`, for ids that
    continue a text, keeps SentencePiece's leading space.
    """

    def __init__(
        self, tokenizer: Vocabulary, *, skip_special: bool = True, start_of_text: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._drop_space = start_of_text and tokenizer.drops_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that this token completes; invalid bytes become U+FFFD."""
        special = self._tokenizer.is_special(token)
        if special and self._skip_special:
            return ""
        data = self._tokenizer.token_bytes(token)
        if self._drop_space and not special and data:
            data = data.removeprefix(b" ")
            self._drop_space = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """U+FFFD if the last character is incomplete."""
        return self._utf8.decode(b"", True)


def decode(tokenizer: Vocabulary, tokens: Iterable[int], skip_special: bool) -> str:
    """Text of all `tokens`."""
    stream = StreamDecoder(tokenizer, skip_special=skip_special)
    pieces = [stream.push(token) for token in tokens]
    return "".join(pieces) + stream.flush()


class StopStrings:
    """Cuts a stream of text at the first stop string, which may span several tokens.

    "First" is by end (the longer of two that end together), so that the cut does not depend on how
    the text is split. Only text that may become a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string was found."""
        if self._stopped:
            return "", True
        text = self._held + text
        cut = self._first_stop(text)
        self._stopped = cut is not None
        keep = len(text) - self._undecided(text) if cut is None else cut
        self._held = "" if self._stopped else text[keep:]
        return text[:keep], self._stopped

    def flush(self) -> str:
        """Text held back at the end of the stream."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> int | None:
        ends = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        return min(ends)[1] if ends else None

    def _undecided(self, text: str) -> int:
        """Length of the longest suffix of `text` that begins a stop string."""
        longest = max(map(len, self._stops), default=1)
        for start in range(max(0, len(text) - longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stops):
                return len(text) - start
        return 0
