"""Text as it is generated: whole characters only, and nothing past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol


class TokenBytes(Protocol):
    """What incremental decoding needs of a tokenizer."""

    drops_first_space: bool

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token; special tokens are their names, unknown ids are empty."""

    def is_special(self, token: int) -> bool:
        """Whether the token steers the model rather than being part of a text."""


class StreamDecoder:
    """Token ids one at a time to text, never half a character.

    The pieces and the flush join to `tokenizer.decode` of the same ids. Where the ids continue a
    text rather than begin one, `start_of_text=False` keeps SentencePiece's leading space.
    """

    def __init__(
        self, tokenizer: TokenBytes, *, skip_special: bool = True, start_of_text: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._drop_space = start_of_text and tokenizer.drops_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that this token completes; bytes that are no character become U+FFFD."""
        special = self._tokenizer.is_special(token)
        if special and self._skip_special:
            return ""
        data = self._tokenizer.token_bytes(token)
        if self._drop_space and not special and data:
            data = data.removeprefix(b" ")
            self._drop_space = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD where the last character never became whole."""
        return self._utf8.decode(b"", True)


def decode(tokenizer: TokenBytes, tokens: Iterable[int], skip_special: bool) -> str:
    """All of `tokens` at once."""
    stream = StreamDecoder(tokenizer, skip_special=skip_special)
    pieces = [stream.push(token) for token in tokens]
    return "".join(pieces) + stream.flush()


class StopStrings:
    """Cuts a stream of text at the first stop string, wherever token borders fall.

    Of several, the one that ends first counts (the longer, where two end together), so the cut
    does not depend on how the text arrives. Only text that may yet become a stop is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Text now safe to show, and whether a stop string has been met."""
        if self._stopped:
            return "", True
        text = self._held + text
        cut = self._first_stop(text)
        self._stopped = cut is not None
        keep = len(text) - self._undecided(text) if cut is None else cut
        self._held = "" if self._stopped else text[keep:]
        return text[:keep], self._stopped

    def flush(self) -> str:
        """Text held back at the end of the stream: it did not become a stop."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> int | None:
        found = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        return min(found)[1] if found else None

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._stops), default=1)
        for start in range(max(0, len(text) - longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stops):
                return len(text) - start
        return 0
