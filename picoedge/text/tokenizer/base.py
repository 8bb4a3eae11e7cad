"""Tokenizer protocols, special tokens, and what both kinds of tokenizer share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from picoedge.text.tokenizer.settings import TextSettings
from picoedge.text.tokenizer.stream_decoder import TokenBytes, decode

JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
SPACE = "▁"  # SentencePiece's space


class Vocabulary(TokenBytes, Protocol):
    """Bytes of tokens, and the tokens that end an answer."""

    eos_ids: frozenset[int]
    """tokens that end an answer: end of sequence, of text, of turn"""
    drops_first_space: bool
    """whether the tokenizer puts a space before a text, to be dropped when decoding"""


class SpecialTokens:
    """Splits a text at the leftmost, longest occurrences of token texts."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = {text: i for text, i in ids.items() if text}
        lengths: dict[str, set[int]] = {}
        for text in self.ids:
            lengths.setdefault(text[0], set()).add(len(text))
        # Thousands of tokens have few lengths: a search by length is faster than one large pattern.
        self._lengths = {first: sorted(sizes, reverse=True) for first, sizes in lengths.items()}
        firsts = "".join(map(re.escape, self._lengths))
        self._first = re.compile(f"[{firsts}]") if firsts else None

    def split(self, text: str) -> Iterator[str | int]:
        """Yield token ids and the non-empty texts between them, in order."""
        done = 0
        for start, end, token in self._matches(text):
            if start > done:
                yield text[done:start]
            yield token
            done = end
        if done < len(text):
            yield text[done:]

    def _matches(self, text: str) -> Iterator[tuple[int, int, int]]:
        at = 0
        while self._first is not None and (match := self._first.search(text, at)):
            start = match.start()
            end = self._longest_end(text, start)
            if end > start:
                yield start, end, self.ids[text[start:end]]
            at = max(end, start + 1)

    def _longest_end(self, text: str, start: int) -> int:
        for length in self._lengths[text[start]]:
            if text[start : start + length] in self.ids:
                return start + length
        return start


class Tokenizer(Vocabulary, Protocol):
    """Text to ids and back. Thread-safe."""

    vocab_size: int
    bos_id: int | None
    special_tokens: SpecialTokens
    """the control tokens, by text"""

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of `text`, with BOS in front if the model wants one and the text has none.

        With `parse_special=False` the name of a special token in `text` is plain text.
        """

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return decode(self, ids, skip_special)


def clean(text: str) -> str:
    """`text` as valid Unicode: surrogate pairs joined, lone surrogates as U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def with_bos(ids: list[int], settings: TextSettings, wanted: bool) -> list[int]:
    """`ids` with BOS in front if `wanted` and the model has one; never twice."""
    bos = settings.bos_id
    if not wanted or not settings.add_bos or bos is None or ids[:1] == [bos]:
        return ids
    return [bos, *ids]
