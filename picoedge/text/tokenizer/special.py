"""Finding special tokens in a text before it is tokenized."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping


class SpecialTokens:
    """Splits a text at the leftmost, longest occurrences of given token texts."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = {text: i for text, i in ids.items() if text}
        lengths: dict[str, set[int]] = {}
        for text in self.ids:
            lengths.setdefault(text[0], set()).add(len(text))
        # Thousands of tokens share a few lengths, so a search by length beats one big pattern.
        self._lengths = {first: sorted(sizes, reverse=True) for first, sizes in lengths.items()}
        firsts = "".join(map(re.escape, self._lengths))
        self._first = re.compile(f"[{firsts}]") if firsts else None

    def split(self, text: str) -> Iterator[str | int]:
        """Yield token ids, and the non-empty runs of text between them, in order."""
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
