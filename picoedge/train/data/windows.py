"""Sequences of a corpus: windows of its tokens, in another order and at other places each epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from picoedge.kernels.arrays import I32
from picoedge.train.data.corpus import Corpus
from picoedge.train.data.order import SampleOrder, mix
from picoedge.train.step.batch import NO_TARGET, Batch


class CorpusSource:
    """A `TokenSource` over a corpus. Close it after use.

    Batches are of `micro_batches` micro-batches of `sequences` sequences of `length` tokens. Raises
    ModelError where the corpus is damaged, StorageError where the disk fails.
    """

    def __init__(
        self,
        corpus: Corpus,
        micro_batches: int,
        sequences: int,
        length: int,
        seed: int,
        *,
        verify: bool = True,
    ) -> None:
        assert corpus.tokens > length
        self._corpus, self._seed = corpus, seed
        self._shape, self._length = (micro_batches, sequences), length
        with corpus.reader(held_out=True, verify=verify) as reader:
            self._held_out = self._held_out_batches(reader.read(0, len(reader)))
        self._tokens = corpus.reader(verify=verify)
        self._count = corpus.tokens // length
        self._order = SampleOrder(self._count, seed)

    @property
    def held_out(self) -> Sequence[Batch]:
        """See `TokenSource`."""
        return self._held_out

    @property
    def tokens_per_epoch(self) -> int:
        """See `TokenSource`."""
        return self._count * self._length

    def batch(self, step: int) -> Batch:
        """See `TokenSource`."""
        size = self._shape[0] * self._shape[1]
        first = (step - 1) * size
        windows = [self._window(position) for position in range(first, first + size)]
        return Batch.of_windows(np.stack(windows).reshape(*self._shape, -1))

    def _window(self, position: int) -> I32:
        """Tokens i32 [length + 1]. Each epoch's windows begin elsewhere, and go on at the end with
        the first tokens, so that each token but a rest is a target once.
        """
        epoch = position // self._count
        start = mix(mix(self._seed) ^ epoch) % self._corpus.tokens if epoch else 0
        number = self._order.sample(position)
        return self._tokens.read(start + number * self._length, self._length + 1)

    def _held_out_batches(self, tokens: I32) -> list[Batch]:
        """Windows side by side; the last batch is filled up with sequences that count nothing."""
        if len(tokens) < 2:
            return []
        length, (micro_batches, sequences) = self._length, self._shape
        count = -(-(len(tokens) - 1) // length)
        rows = -(-count // sequences) * sequences
        padded = np.zeros((2, rows * length), np.int32)
        padded[1] = NO_TARGET
        padded[0, : len(tokens) - 1], padded[1, : len(tokens) - 1] = tokens[:-1], tokens[1:]
        both = padded.reshape(2, -1, sequences, length)
        return [
            Batch(both[0, at : at + micro_batches], both[1, at : at + micro_batches])
            for at in range(0, both.shape[1], micro_batches)
        ]

    def describe(self) -> dict[str, Any]:
        """See `TokenSource`."""
        corpus, hasher = self._corpus, hashlib.blake2b(digest_size=32)
        for file in (*corpus.train, *corpus.held_out):
            hasher.update(f"{file.name} {file.tokens} {file.blake2b}\n".encode())
        return {
            "kind": "text",
            "data": hasher.hexdigest(),
            "tokenizer": corpus.tokenizer,
            "vocab_size": corpus.vocab_size,
            "tokens": corpus.tokens,
            "held_out_tokens": corpus.held_out_tokens,
            "documents": corpus.documents,
        }

    def close(self) -> None:
        """Close the corpus's files. Idempotent."""
        self._tokens.close()
