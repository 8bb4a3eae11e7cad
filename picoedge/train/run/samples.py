"""Samples of text from a model while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from picoedge.config import ModelConfig, SamplingOptions
from picoedge.kernels.training import TrainingKernels
from picoedge.model.sampling import Sampler
from picoedge.model.vjps import MicroBatch, Parameters
from picoedge.train.run.loop import RunWatcher

LONGEST_SAMPLE, MOST = 64, 6


class TextSampler:
    """Texts of up to LONGEST_SAMPLE tokens, the prompt's included, by the weights as they are.

    Each token is computed with all before it, as training has no cache: a sample costs about as
    much as a step of a few thousand tokens. The same weights and seed give the same text.
    """

    def __init__(
        self, config: ModelConfig, kernels: TrainingKernels, parameters: Parameters,
        prompt: Sequence[int], ends: frozenset[int],
    ) -> None:  # fmt: skip
        self._prompt, self._ends = list(prompt)[: LONGEST_SAMPLE // 2] or [0], ends
        self._work = MicroBatch(config, kernels, parameters, 1, LONGEST_SAMPLE, recompute=True)

    def sample(self, seed: int) -> list[int]:
        """Ids of the prompt and what follows."""
        tokens, sampler = list(self._prompt), Sampler(SamplingOptions(seed=seed, temperature=0.7))
        padded = np.zeros(LONGEST_SAMPLE, np.int32)
        while len(tokens) < LONGEST_SAMPLE:
            padded[: len(tokens)] = tokens
            token = sampler.pick(self._work.logits(padded, len(tokens) - 1), tokens)
            if token in self._ends:
                break
            tokens.append(token)
        return tokens


class Samples(RunWatcher):
    """Has a text made after evaluations, MOST in a run, and tells it."""

    def __init__(
        self, steps: int, make: Callable[[int], str], tell: Callable[[int, str], None]
    ) -> None:
        """`make(step)` writes one in a run of `steps`; `tell(step, text)` shows it."""
        self._steps, self._make, self._tell = steps, make, tell
        self._part = 0

    def evaluated(self, step: int, loss: float, *, is_best: bool) -> None:
        """See `RunWatcher`."""
        part = step * MOST // self._steps
        if part > self._part:
            self._part = part
            self._tell(step, self._make(step))
