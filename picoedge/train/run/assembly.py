"""The parts of a run put together: kernels, trainer, a dry run, facts that decide its bits."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from ctypes import CDLL
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from picoedge.errors import ModelError
from picoedge.fields import Fields
from picoedge.host.resources import give_back
from picoedge.kernels.arrays import I32
from picoedge.kernels.loader import load_training_kernels, load_training_library
from picoedge.kernels.sums import EXPONENT, GradientSums
from picoedge.kernels.training import QUERIES, SEGMENT, TrainingKernels
from picoedge.model.vjps import HEAD_ROWS
from picoedge.train.run.memory import MemoryFit
from picoedge.train.step.batch import Batch
from picoedge.train.step.blas import hold_blas_to_one_thread
from picoedge.train.step.trainer import (
    PlainSums,
    StepSettings,
    Sums,
    TrainedLayout,
    Trainer,
    TrainingState,
)

_MEASURED_S = 2.0
_MOST_MEASURED = 8


@dataclass(frozen=True)
class Arithmetic:
    """Kernels by name: "exact" (C, the same bits on every board), "blas" (`--fast`) or "numpy"."""

    name: str
    library: CDLL | None
    kind: str | None  # as asked for

    @classmethod
    def choose(cls, kind: str | None, *, fast: bool) -> Arithmetic:
        """Raises UsageError, PicoedgeError as `load_kernels`."""
        library = load_training_library(kind)
        if fast:
            hold_blas_to_one_thread()
        name = "numpy" if library is None else "blas" if fast else "exact"
        return cls(name, library, kind)

    def make_kernels(self) -> TrainingKernels:
        """Of one thread."""
        return load_training_kernels(self.kind, fast=self.name == "blas")

    def sums(self, length: int, micro_batches: int) -> Sums:
        """Of gradients of `length` values."""
        if self.name == "exact":
            assert self.library is not None
            return GradientSums(self.library, length, micro_batches)
        return PlainSums(length)

    def trainer(
        self, layout: TrainedLayout, state: TrainingState, settings: StepSettings, fit: MemoryFit
    ) -> Trainer:
        """Close it after use."""
        sums = self.sums(layout.length, settings.micro_batches)
        return Trainer(
            layout, state, settings, sums, self.make_kernels, fit.threads, recompute=fit.recompute
        )


def measure_step(
    arithmetic: Arithmetic,
    layout: TrainedLayout,
    settings: StepSettings,
    fit: MemoryFit,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of a step, by steps of one micro-batch a thread that train weights of no use.

    Everything that it takes of memory is given back.
    """
    rounds = -(-settings.micro_batches // min(fit.threads, settings.micro_batches))
    small = replace(settings, micro_batches=-(-settings.micro_batches // rounds))
    tokens = _random_tokens(layout.config.vocab_size, small)
    batch = Batch(tokens, tokens)
    with closing(
        arithmetic.trainer(layout, TrainingState.initial(layout, 0), small, fit)
    ) as trainer:
        trainer.step(batch)  # touches all memory
        began, done = clock(), 0
        while done < _MOST_MEASURED and (not done or clock() - began < _MEASURED_S):
            trainer.step(batch)
            done += 1
        seconds = (clock() - began) / done
    del trainer
    gc.collect()
    give_back()
    return seconds * rounds


def _random_tokens(vocabulary: int, settings: StepSettings) -> I32:
    shape = settings.micro_batches, settings.sequences, settings.length
    return np.random.default_rng(0).integers(0, vocabulary, shape, np.int32)


def run_facts(
    arithmetic: Arithmetic, model: Mapping[str, Any], settings: Mapping[str, Any],
    data: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """All that decides the bits of a run, in each of its checkpoints."""
    facts = {
        "arithmetic": arithmetic.name,
        "format": [QUERIES, SEGMENT, EXPONENT, HEAD_ROWS],
        "model": dict(model),
        "settings": dict(settings),
        "data": dict(data),
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts))  # as a checkpoint gives it back
    return plain


def hash_of_run(facts: Mapping[str, Any]) -> str:
    """A name for a run's facts: 16 hexadecimal digits."""
    import hashlib

    text = json.dumps(facts, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=8).hexdigest()


_KERNELS = {
    "exact": "the exact kernels", "blas": "BLAS (--fast)", "numpy": "NumPy (no C kernels)",
}  # fmt: skip


def check_facts(found: Fields, ours: Mapping[str, Any]) -> None:
    """Raises ModelError where a checkpoint belongs to a run with other facts, and names one."""
    theirs = found.object("run").values
    if theirs == ours:
        return
    was, is_now = theirs.get("arithmetic"), ours["arithmetic"]
    if was != is_now and isinstance(was, str):
        raise ModelError(
            f"{found.where} was trained by {_KERNELS.get(was, 'other kernels')}, and this is "
            f"{_KERNELS[is_now]}: the bits would be of neither",
            "--fast and --kernels belong to a run: resume it as it was begun",
        )
    for part in ours:
        name = _first_difference(theirs.get(part), ours[part])
        if name is not None:
            raise ModelError(
                f"{found.where} belongs to another run: its {part}{name} differs",
                "resume with the settings it was begun with, or begin anew with another --out",
            )
    raise ModelError(f"{found.where} belongs to another run", "begin anew with another --out")


def _first_difference(theirs: Any, ours: Any) -> str | None:
    """` learning_rate` of two objects; "" of other values; None where they are equal."""
    if theirs == ours:
        return None
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return next((f" {name}" for name in ours if theirs.get(name) != ours[name]), "")
    return ""
