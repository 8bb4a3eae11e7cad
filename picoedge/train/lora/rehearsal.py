"""Pseudo-rehearsal: text that a model wrote itself, on which fine-tuning keeps it as it was.

What is learned from a few examples spills over into all that a model says. So each step has one
micro-batch of text of the model's own, sampled before the first step, whose loss is the divergence
from the model without its adapter (Robins 1995; Li and Hoiem 2016, "learning without forgetting").
The reference of a token is what the head read, `hidden` floats: the head is frozen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from picoedge.config import ModelConfig, SamplingOptions
from picoedge.kernels.arrays import F32, I32
from picoedge.kernels.loader import load_kernels
from picoedge.model.sampling import Sampler
from picoedge.model.transformer import Transformer
from picoedge.store.pack.reader import Pack
from picoedge.text.tokenizer.base import TextSettings
from picoedge.train.data.examples import ExampleSource
from picoedge.train.step.batch import Batch, Rehearsal

_TOKENS = 1024  # of the whole text, about
FEWEST = 4  # micro-batches, so that not one text alone is rehearsed

Hidden = Callable[[I32], F32]
"""What the head reads of tokens [sequences * length]: `MicroBatch.hidden` without an adapter."""


def micro_batches(tokens: int) -> int:
    """Of the whole text, where each has so many tokens."""
    return max(FEWEST, _TOKENS // tokens)


def rehearsal_bytes(config: ModelConfig, tokens: int) -> int:
    """What the references of micro-batches of so many tokens take."""
    return 4 * micro_batches(tokens) * tokens * (config.hidden_size + 1)


def first_tokens(settings: TextSettings) -> list[int]:
    """Tokens that texts begin with: the model's BOS, or where it puts none the end of another."""
    begins = set() if settings.bos_id is None else {settings.bos_id}
    if not settings.add_bos:
        begins |= settings.eos_ids
    return sorted(begins) or [0]


def own_text(
    pack: Pack, kernels: str | None, threads: int, shape: tuple[int, int], seed: int,
    tell: Callable[[int, int], None],
) -> I32:  # fmt: skip
    """Texts that a model writes, i32 [micro-batches, sequences, length + 1]: as likely as it says.

    `shape`: sequences of a micro-batch, length. `tell` is called with tokens done and of how many.
    """
    sequences, length = shape
    count = micro_batches(sequences * length) * sequences
    begins = first_tokens(TextSettings.read(pack.path))
    options = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
    sampler, texts = Sampler(options), np.empty((count, length + 1), np.int32)
    with (
        closing(load_kernels(kernels, threads)) as loaded,
        closing(Transformer(pack, loaded, length, batch=1)) as model,
    ):
        for number, text in enumerate(texts):
            text[0] = begins[number % len(begins)]
            for at in range(length):
                text[at + 1] = sampler.pick(model.forward((int(text[at]),), at), ())
            tell((number + 1) * length, count * length)
    return texts.reshape(-1, sequences, length + 1)


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
        text = hashlib.blake2b(self.texts.astype("<i4").tobytes(), digest_size=32).hexdigest()
        return {**self.examples.describe(), "rehearsal": text}
