"""Samples of text from a model while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from picoedge.config import ModelConfig, SamplingOptions
from picoedge.kernels.training import TrainingKernels
from picoedge.model.parameters import Parameters
from picoedge.model.sampling import Sampler
from picoedge.model.vjps import MicroBatch
from picoedge.train.run.loop import RunWatcher
from picoedge.train.step.trainer import StepResult

LONGEST_SAMPLE, MOST = 64, 6


class TextSampler:
    """Texts of up to `length` tokens, the prompt's included, by the weights as they are.

    Each token is computed with all before it, as training has no cache: a sample costs about as
    much as a step of a few thousand tokens. The same weights and seed give the same text.
    """

    def __init__(
        self, config: ModelConfig, kernels: TrainingKernels, parameters: Parameters,
        prompt: Sequence[int], ends: frozenset[int], *, length: int = LONGEST_SAMPLE,
        temperature: float = 0.7,
    ) -> None:  # fmt: skip
        self._prompt, self._ends = list(prompt) or [0], ends
        self._length, self._temperature = length, temperature
        self._work = MicroBatch(config, kernels, parameters, 1, length, recompute=True, head_rows=1)

    def sample(self, seed: int) -> list[int]:
        """Ids of the prompt and what follows."""
        options = SamplingOptions(seed=seed, temperature=self._temperature)
        tokens, sampler = list(self._prompt), Sampler(options)
        padded = np.zeros(self._length, np.int32)
        while len(tokens) < self._length:
            padded[: len(tokens)] = tokens
            token = sampler.pick(self._work.logits(padded, len(tokens) - 1), tokens)
            if token in self._ends:
                break
            tokens.append(token)
        return tokens


class Samples(RunWatcher):
    """Has a text made now and then, MOST times in a run, and tells it."""

    def __init__(
        self, steps: int, done: int, make: Callable[[int], str], tell: Callable[[int, str], None]
    ) -> None:
        """`make(step)` writes one in a run of `steps`, of which `done` are done before; `tell(step,
        text)` shows it.
        """
        self._steps, self._make, self._tell = steps, make, tell
        self._part = self._part_of(done)

    def stepped(self, result: StepResult, tokens: int) -> None:
        """See `RunWatcher`."""
        part = self._part_of(result.step)
        if part > self._part:
            self._part = part
            self._tell(result.step, self._make(result.step))

    def _part_of(self, step: int) -> int:
        return step * MOST // self._steps
