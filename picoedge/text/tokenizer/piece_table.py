"""Token bytes without the tokenizer, and apart from it, because they need NumPy."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from picoedge.text.tokenizer.stream_decoder import Vocabulary


class PieceTable:
    """Copy of a `Vocabulary` of `size` tokens, in a tenth of a tokenizer's memory."""

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        self.eos_ids = vocabulary.eos_ids
        self.drops_first_space = vocabulary.drops_first_space
        tokens = range(size)
        pieces = [vocabulary.token_bytes(token) for token in tokens]
        self._bytes = b"".join(pieces)
        self._ends = np.fromiter(accumulate(map(len, pieces), initial=0), np.uint32)
        self._special = frozenset(filter(vocabulary.is_special, tokens))

    def token_bytes(self, token: int) -> bytes:
        """See `Vocabulary.token_bytes`."""
        if not 0 <= token < len(self._ends) - 1:
            return b""
        start, end = self._ends[token : token + 2].tolist()
        return self._bytes[start:end]

    def is_special(self, token: int) -> bool:
        """See `Vocabulary.is_special`."""
        return token in self._special
