"""Small runs of training in this process: a model of 60,000 weights on a text of seven tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from training_material import tiny_config

from picoedge.errors import PicoedgeError
from picoedge.kernels.loader import load_training_kernels, load_training_library
from picoedge.kernels.sums import GradientSums
from picoedge.train.run.loop import RunPlan, RunWatcher
from picoedge.train.state.layout import Layout
from picoedge.train.step.batch import Batch
from picoedge.train.step.schedule import Schedule
from picoedge.train.step.trainer import StepResult, StepSettings, Trainer, TrainingState

STEPS = 10
PLAN = RunPlan(STEPS, evaluate_every=2, save_every=3)
LAYOUT = Layout.of(tiny_config("llama"))
SETTINGS = StepSettings(2, 2, 16, Schedule(3e-3, 3, STEPS))


@dataclass
class PeriodicText:
    """A `TokenSource` of a text with a period of seven tokens. At `fails_at` it is cut off."""

    held_out: Sequence[Batch] = field(default_factory=lambda: [_batch(10_001)])
    fails_at: int = -1
    asked: list[int] = field(default_factory=list)

    def batch(self, step: int) -> Batch:
        """Of a step, by its number alone."""
        self.asked.append(step)
        if step == self.fails_at:
            raise Killed
        return _batch(step)


class Killed(BaseException):
    """A process ends here: nothing of ours handles it."""


def _batch(seed: int) -> Batch:
    starts = np.random.default_rng(seed).integers(0, 5000, (2, 2, 1))
    return Batch.of_windows(((starts + np.arange(17)) % 7 + 3).astype(np.int32))


def new_trainer(threads: int = 1, state: TrainingState | None = None) -> Trainer:
    """A trainer of the small model; without a `state` it begins."""
    library = load_training_library()
    assert library is not None
    sums = GradientSums(library, LAYOUT.length, SETTINGS.micro_batches)
    state = state or TrainingState.initial(LAYOUT, 0)
    return Trainer(LAYOUT, state, SETTINGS, sums, load_training_kernels, threads)


@contextmanager
def training(threads: int = 1, state: TrainingState | None = None) -> Iterator[Trainer]:
    """A trainer that is closed behind the block."""
    with closing(new_trainer(threads, state)) as made:
        yield made


@dataclass
class Events(RunWatcher):
    """What a run told of, in order: ("step", 1), ("evaluated", 2, True), …"""

    seen: list[tuple[Any, ...]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def stepped(self, result: StepResult, tokens: int) -> None:
        """See `RunWatcher`."""
        self.seen.append(("step", result.step))
        self.losses.append(result.loss)

    def evaluated(self, step: int, loss: float, *, is_best: bool) -> None:
        """See `RunWatcher`."""
        self.seen.append(("evaluated", step, is_best))

    def saved(self, step: int, path: Path) -> None:
        """See `RunWatcher`."""
        self.seen.append(("saved", step))

    def not_saved(self, step: int, error: PicoedgeError) -> None:
        """See `RunWatcher`."""
        self.seen.append(("not saved", step))

    def of(self, kind: str) -> list[int]:
        """Steps of one kind of event."""
        return [event[1] for event in self.seen if event[0] == kind]
