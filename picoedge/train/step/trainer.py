"""Training on one board: threads are whole micro-batches, and no thread changes a bit.

gradient of each micro-batch  -> their sum, in any order  -> clipped by its norm  -> AdamW
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from picoedge.config import ModelConfig
from picoedge.errors import PicoedgeError
from picoedge.kernels.arrays import F32
from picoedge.kernels.sums import NotFiniteError
from picoedge.kernels.training import SEGMENT, TrainingKernels, adam_step
from picoedge.model.parameters import Parameters
from picoedge.model.vjps import HEAD_ROWS, MicroBatch
from picoedge.train.step.batch import Batch, Rehearsal
from picoedge.train.step.schedule import Schedule

_SPAN = 1 << 16  # values of the optimizer that a thread takes at once


@dataclass(frozen=True)
class StepSettings:
    """Sizes that decide a step's result: all of them belong to the run.

    A step is `micro_batches` micro-batches of `sequences` sequences of `length` tokens each.
    """

    micro_batches: int
    sequences: int
    length: int
    schedule: Schedule
    clip: float = 1.0  # the largest norm of a gradient; 0: any
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.1

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.micro_batches * self.sequences * self.length


@dataclass(frozen=True)
class StepResult:
    """A step that is done: its number, mean loss, the gradient's norm, the learning rate."""

    step: int
    loss: float
    norm: float
    rate: float


class TrainedLayout(Protocol):
    """Trained weights as one flat vector: all of a model's, or adapters on frozen ones."""

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        ...

    @property
    def length(self) -> int:
        """Values of the vector, a multiple of `SUM_BLOCK`."""
        ...

    @property
    def parameters(self) -> int:
        """Values that are trained, without those between tensors."""
        ...

    @property
    def decayed(self) -> int:
        """Values, from the first on, that have weight decay."""
        ...

    def initial(self, seed: int) -> F32:
        """Values to begin with, f32 [length]."""
        ...

    def name_at(self, value: int) -> str:
        """The tensor that a value of the vector belongs to."""
        ...

    def bind(self, weights: F32, gradient: F32) -> Parameters:
        """The model on `weights`, with the gradient of one thread; f32 [length] each."""
        ...


class Sums(Protocol):
    """The sum of a step's gradients."""

    def add(self, gradient: F32) -> None:
        """Add one, from one thread at a time. Raises NotFiniteError."""
        ...

    def take(self, out: F32) -> None:
        """Put the sum into `out`, and begin at zero."""
        ...

    def clear(self) -> None:
        """Begin at zero."""
        ...


class PlainSums:
    """Sums in f32, whose bits depend on the order of micro-batches: of `--fast`, and of NumPy."""

    def __init__(self, length: int) -> None:
        self._sum = np.zeros(length, np.float32)

    def add(self, gradient: F32) -> None:
        """See `Sums`."""
        if not np.isfinite(gradient).all():
            raise NotFiniteError.of(gradient, 0)
        self._sum += gradient

    def take(self, out: F32) -> None:
        """See `Sums`."""
        out[:] = self._sum
        self.clear()

    def clear(self) -> None:
        """See `Sums`."""
        self._sum.fill(0)


class NoStepError(PicoedgeError):
    """A step whose loss or gradient is not finite, and which has changed nothing."""


@dataclass(eq=False)
class TrainingState:
    """Weights and AdamW's moments, f32 [layout.length] each, after `step` steps."""

    weights: F32
    m: F32
    v: F32
    step: int = 0

    @classmethod
    def initial(cls, layout: TrainedLayout, seed: int) -> TrainingState:
        """Of a run that begins."""
        weights = layout.initial(seed)
        return cls(weights, np.zeros_like(weights), np.zeros_like(weights))


class Trainer:
    """Steps of one model. `make_kernels` makes the kernels of one thread. Close it after use."""

    def __init__(
        self,
        layout: TrainedLayout,
        state: TrainingState,
        settings: StepSettings,
        sums: Sums,
        make_kernels: Callable[[], TrainingKernels],
        threads: int,
        *,
        recompute: bool = False,
        kept_layers: int = 0,
        head_rows: int = HEAD_ROWS,
    ) -> None:
        """`recompute`, `kept_layers`, `head_rows`: of `MicroBatch`."""
        self.layout, self.state, self.settings = layout, state, settings
        self._sums, self._lock = sums, threading.Lock()
        threads = max(1, min(threads, settings.micro_batches))
        self._kernels = [make_kernels() for _ in range(threads)]
        self._gradients = [np.zeros_like(state.weights) for _ in range(threads)]
        self._works = [
            MicroBatch(
                layout.config,
                kernels,
                layout.bind(state.weights, gradient),
                settings.sequences,
                settings.length,
                recompute=recompute,
                kept_layers=kept_layers,
                head_rows=head_rows,
            )
            for kernels, gradient in zip(self._kernels, self._gradients, strict=True)
        ]
        self._pool = ThreadPoolExecutor(threads, "training")

    def step(self, batch: Batch) -> StepResult:
        """One step. Its loss is the mean over all targets of the step, without a rehearsal's.

        Raises NoStepError where loss or gradient is not finite: the state is that of before.
        """
        count = len(batch.tokens)
        assert count == self.settings.micro_batches
        total, targets = np.zeros(count), max(1, batch.targets_counted)

        def work(thread: int, number: int) -> None:
            if number < count:
                total[number] = self._losses_and_gradients(thread, batch, number, 1 / targets)
            elif batch.rehearsal is not None:
                self._rehearse(thread, batch.rehearsal)
            with self._lock:
                self._sums.add(self._gradients[thread])

        try:
            self._deal(count + (batch.rehearsal is not None), work)
        except NotFiniteError as error:
            self._sums.clear()
            name = self.layout.name_at(error.at)
            raise NoStepError(f"a value of the gradient of {name} is {error.what}") from error
        except BaseException:
            self._sums.clear()
            raise
        gradient = self._gradients[0]
        self._sums.take(gradient)
        loss, norm = float(total.sum()) / targets, self._norm(gradient)
        for what, value in (("loss", loss), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                raise NoStepError(f"the {what} is {value}")
        return self._adopt(gradient, norm, loss)

    def loss(self, batch: Batch) -> float:
        """The mean loss of a batch of any number of micro-batches, without a step."""
        total = np.zeros(len(batch.tokens))

        def work(thread: int, number: int) -> None:
            tokens, targets, documents = batch.micro_batch(number)
            total[number] = self._works[thread].losses(tokens, targets, documents).sum()

        self._deal(len(total), work)
        mean: float = float(total.sum()) / max(1, batch.targets_counted)
        return mean

    def _losses_and_gradients(self, thread: int, batch: Batch, number: int, weight: float) -> float:
        """The sum of a micro-batch's losses; its gradient is in the thread's."""
        tokens, targets, documents = batch.micro_batch(number)
        losses = self._works[thread].losses_and_gradients(tokens, targets, weight, documents)
        return float(losses.sum())

    def _rehearse(self, thread: int, rehearsal: Rehearsal) -> None:
        tokens, targets = rehearsal.tokens.ravel(), rehearsal.targets.ravel()
        self._works[thread].losses_and_gradients(
            tokens, targets, rehearsal.weight / len(tokens), reference=rehearsal.reference
        )

    def _deal(self, count: int, work: Callable[[int, int], None]) -> None:
        """Call work(thread, number) for each number below `count`: a thread takes the next."""
        waiting = iter(range(count))

        def take(thread: int) -> None:
            while True:
                with self._lock:
                    number = next(waiting, None)
                if number is None:
                    return
                work(thread, number)

        jobs = [self._pool.submit(take, thread) for thread in range(len(self._works))]
        errors = [error for job in jobs if (error := job.exception()) is not None]
        if errors:
            raise errors[0]

    def _norm(self, gradient: F32) -> float:
        sums = np.empty(-(-len(gradient) // SEGMENT))
        self._kernels[0].squares(gradient, sums)
        total = 0.0
        for segment in sums:  # by index
            total += float(segment)
        return math.sqrt(total)

    def _adopt(self, gradient: F32, norm: float, loss: float) -> StepResult:
        settings, state = self.settings, self.state
        step = state.step + 1
        rate = settings.schedule.rate(step)
        scale = min(1.0, settings.clip / norm) if settings.clip and norm else 1.0
        decays = settings.weight_decay, 0.0
        moves = [
            adam_step(
                step, rate, gradient_scale=scale, betas=settings.betas,
                epsilon=settings.epsilon, weight_decay=decay,
            )
            for decay in decays
        ]  # fmt: skip
        spans = [
            (part, move)
            for move, (start, stop) in zip(moves, self._decays(), strict=True)
            for part in _spans(start, stop)
        ]

        def work(thread: int, number: int) -> None:
            part, move = spans[number]
            self._kernels[thread].adamw(
                move, state.weights[part], state.m[part], state.v[part], gradient[part]
            )

        self._deal(len(spans), work)
        state.step = step
        return StepResult(step, loss, norm, rate)

    def _decays(self) -> list[tuple[int, int]]:
        return [(0, self.layout.decayed), (self.layout.decayed, self.layout.length)]

    def close(self) -> None:
        """End the threads. Idempotent."""
        self._pool.shutdown()


def _spans(start: int, stop: int) -> Sequence[slice]:
    return [slice(at, min(at + _SPAN, stop)) for at in range(start, stop, _SPAN)]
