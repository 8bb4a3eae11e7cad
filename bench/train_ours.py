"""picoedge's side of the bench `train`. Jobs (JSON on the first line of stdin): `job_*`."""

from __future__ import annotations

import ctypes as ct
import hashlib
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np

from bench import train_worker
from bench.train_shapes import (
    BETAS,
    CLIP,
    EPSILON,
    WEIGHT_DECAY,
    Course,
    config_named,
    random_windows,
)  # fmt: skip
from picoedge.config import ModelConfig
from picoedge.kernels.arrays import I32
from picoedge.kernels.loader import load_training_kernels, load_training_library
from picoedge.kernels.sums import GradientSums
from picoedge.kernels.training import NativeTrainingKernels, TrainingKernels
from picoedge.train.run.text_settings import DEFAULTS
from picoedge.train.state.layout import Layout
from picoedge.train.step.batch import Batch
from picoedge.train.step.blas import hold_blas_to_one_thread
from picoedge.train.step.schedule import Schedule
from picoedge.train.step.trainer import PlainSums, StepSettings, Sums, Trainer, TrainingState


def trainer_of(
    config: ModelConfig, mode: str, threads: int, shape: tuple[int, int, int],
    schedule: Schedule, seed: int, *, kernels: str | None = None, library: str | None = None,
) -> Trainer:  # fmt: skip
    """A trainer; shape: micro-batches, sequences of each, length.

    `kernels`: a level instead of the best; `library`: a build of the C kernels.
    """
    layout = Layout.of(config)
    settings = StepSettings(
        *shape, schedule, clip=CLIP, betas=BETAS, epsilon=EPSILON, weight_decay=WEIGHT_DECAY
    )
    hold_blas_to_one_thread()
    kind = "numpy" if mode == "numpy" else kernels
    built = load_training_library(kind) if library is None else ct.CDLL(library)
    sums: Sums = PlainSums(layout.length)
    if mode == "exact":
        assert built is not None, "exact runs need the C kernels"
        sums = GradientSums(built, layout.length, shape[0])

    def make_kernels() -> TrainingKernels:
        if library is not None:
            assert built is not None
            return NativeTrainingKernels(built, library)
        return load_training_kernels(kind, fast=mode == "fast")

    state = TrainingState.initial(layout, seed)
    return Trainer(layout, state, settings, sums, make_kernels, threads)


def _batch(windows: I32, micro_batches: int) -> Batch:
    return Batch.of_windows(windows.reshape(micro_batches, -1, windows.shape[1]))


def job_speed(
    model: str, threads: int, rows: int, length: int, mode: str, micro_batches: int | None
) -> None:
    """Steps when asked: see `train_worker.serve`.

    `micro_batches` None: as many as `picoedge train` makes of so many sequences by default.
    """
    micro_batches = micro_batches or rows // DEFAULTS[model].micro_batch
    config = config_named(model)
    shape = micro_batches, rows // micro_batches, length
    with closing(trainer_of(config, mode, threads, shape, Schedule(1e-3, 10, 1000), 0)) as made:

        def step(number: int) -> float:
            windows = random_windows(config, 0, number, rows, length)
            return made.step(_batch(windows, micro_batches)).loss

        train_worker.serve(step)


def job_course(ids: str, threads: int, course: dict[str, Any], mode: str = "exact") -> float:
    """The held-out loss at the end of a course over the tokens in the file `ids`."""
    plan, tokens = Course(**course), np.load(ids)
    shape = plan.rows, 1, plan.length
    config = config_named(plan.model)
    with closing(trainer_of(config, mode, threads, shape, plan.schedule, plan.seed)) as made:
        return train_worker.go_through(
            plan, tokens,
            lambda windows: made.step(_batch(windows, plan.rows)).loss,
            lambda windows: made.loss(_batch(windows, len(windows))),
        )  # fmt: skip


def job_bits(
    model: str, threads: int, steps: int, micro_batches: int, length: int,
    kernels: str | None = None, library: str | None = None,
) -> str:  # fmt: skip
    """The hash of the weights after some steps of one sequence a micro-batch."""
    config, schedule = config_named(model), Schedule(1e-3, 5, steps)
    shape = micro_batches, 1, length
    with closing(
        trainer_of(config, "exact", threads, shape, schedule, 0, kernels=kernels, library=library)
    ) as made:
        for number in range(1, steps + 1):
            windows = random_windows(config, 0, number, micro_batches, length)
            made.step(_batch(windows, micro_batches))
        return hashlib.blake2b(made.state.weights.tobytes(), digest_size=16).hexdigest()


JOBS: dict[str, Callable[..., Any]] = {"speed": job_speed, "course": job_course, "bits": job_bits}

if __name__ == "__main__":
    sys.exit(train_worker.main(JOBS))
