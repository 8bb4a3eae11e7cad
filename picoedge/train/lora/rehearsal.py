"""Pseudo-rehearsal: text that a model wrote itself, on which fine-tuning keeps it as it was.

What is learned from a few examples spills over into all that a model says. So each step has one
micro-batch of text of the model's own, sampled before the first step, whose loss is the divergence
from the model without its adapter (Robins 1995; Li and Hoiem 2016, "learning without forgetting").
The reference of a token is what the head read, `hidden` floats: the head is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from picoedge.config import ModelConfig
from picoedge.kernels.arrays import F32, I32
from picoedge.train.data.examples import ExampleSource
from picoedge.train.lora.own_text import micro_batches, text_hash
from picoedge.train.step.batch import Batch, Rehearsal

Hidden = Callable[[I32], F32]
"""Input of the head for tokens [sequences * length]: `MicroBatch.hidden` without an adapter."""


def rehearsal_bytes(config: ModelConfig, tokens: int) -> int:
    """Bytes of the references of micro-batches of so many tokens."""
    return 4 * micro_batches(tokens) * tokens * (config.hidden_size + 1)


@dataclass(frozen=True, eq=False)
class RehearsedSource:
    """The batches of `examples`, each with a micro-batch of the model's own `texts` in turn."""

    examples: ExampleSource
    texts: I32  # [micro-batches, sequences, length + 1]
    references: Sequence[F32]
    weight: float

    @classmethod
    def of(
        cls, examples: ExampleSource, texts: I32, hidden: Hidden, weight: float
    ) -> RehearsedSource:
        """`hidden` computes the references."""
        inputs = np.ascontiguousarray(texts[..., :-1])
        return cls(examples, texts, [hidden(each.ravel()) for each in inputs], weight)

    @property
    def held_out(self) -> Sequence[Batch]:
        """See `TokenSource`."""
        return self.examples.held_out

    @property
    def sequences_per_epoch(self) -> int:
        """Of the examples."""
        return self.examples.sequences_per_epoch

    @property
    def tokens_per_epoch(self) -> int:
        """See `TokenSource`."""
        return self.examples.tokens_per_epoch

    def batch(self, step: int) -> Batch:
        """See `TokenSource`."""
        number = step % len(self.texts)
        text = self.texts[number]
        tokens, targets = (np.ascontiguousarray(each) for each in (text[:, :-1], text[:, 1:]))
        rehearsal = Rehearsal(tokens, targets, self.references[number], self.weight)
        return replace(self.examples.batch(step), rehearsal=rehearsal)

    def describe(self) -> dict[str, Any]:
        """See `TokenSource`."""
        return {**self.examples.describe(), "rehearsal": text_hash(self.texts)}
