"""The parts of a run put together: kernels, trainer, a dry run, facts that decide its bits.

`Run` is the base of what `picoedge train` and `picoedge finetune` do.
"""

from __future__ import annotations

import gc
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from ctypes import CDLL
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from picoedge.errors import ModelError, PicoedgeError
from picoedge.fields import Fields
from picoedge.host.resources import give_back
from picoedge.kernels.arrays import I32
from picoedge.kernels.loader import load_training_kernels, load_training_library
from picoedge.kernels.sums import EXPONENT, GradientSums
from picoedge.kernels.training import DEPTH, SEGMENT, VERSION, TrainingKernels
from picoedge.kernels.training_abi import QUERIES
from picoedge.model.vjps import HEAD_ROWS
from picoedge.train.data.source import TokenSource
from picoedge.train.run.folder import RunFolder
from picoedge.train.run.loop import Outcome, RunWatcher, restored, run_loop
from picoedge.train.run.memory import TrainingFit
from picoedge.train.run.settings import RunOptions, RunSettings
from picoedge.train.state.checkpoints import Saved
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
    is_blas_held: bool = True  # to one thread, where NumPy multiplies

    @classmethod
    def choose(cls, kind: str | None, *, fast: bool) -> Arithmetic:
        """Raises UsageError, PicoedgeError as `load_training_library`."""
        library = load_training_library(kind)
        name = "numpy" if library is None else "blas" if fast else "exact"
        held = name == "exact" or hold_blas_to_one_thread()
        return cls(name, library, kind, held)

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
        self, layout: TrainedLayout, state: TrainingState, settings: StepSettings, fit: TrainingFit
    ) -> Trainer:
        """Close it after use."""
        sums = self.sums(layout.length, settings.micro_batches)
        return Trainer(
            layout, state, settings, sums, self.make_kernels, fit.threads, recompute=fit.recompute
        )


class Run(ABC):
    """A run that is ready to train; subclasses are dataclasses that have all of these fields."""

    forward_share: ClassVar[float]  # the forward pass's part of a step's work

    options: RunOptions
    folder: RunFolder
    settings: RunSettings
    source: TokenSource
    layout: TrainedLayout
    arithmetic: Arithmetic
    step_s: float  # 0: not measured
    saved: Saved | None  # the checkpoint to go on from
    state: TrainingState | None  # after training
    faults: Sequence[PicoedgeError]  # of newer checkpoints, which are passed over
    done: int  # steps, before this session

    @abstractmethod
    def make_trainer(self, state: TrainingState, settings: StepSettings) -> Trainer:
        """A trainer as the run fits the memory. Close it after use."""

    @property
    def evaluation_s(self) -> float:
        """Seconds of an evaluation, about."""
        held_out = sum(batch.tokens.size for batch in self.source.held_out)
        return held_out / self.settings.tokens * self.step_s * self.forward_share

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides its bits."""
        return run_facts(
            self.arithmetic, self.layout.config.to_json(), self.settings.deciding(),
            self.source.describe(),
        )  # fmt: skip

    def train(
        self, watchers: Callable[[Trainer], Sequence[RunWatcher]], stop: Callable[[], bool]
    ) -> Outcome:
        """Train until the end, or until `stop` says so. Raises as `run_loop`."""
        facts, record = self.facts, None
        if self.saved is None:
            state = TrainingState.initial(self.layout, self.settings.seed)
        else:
            where = self.folder.checkpoints.folder
            state, record = restored(self.saved, self.layout.length, where)
            self.saved = None  # its arrays are the state's
        self.state = state
        with closing(self.make_trainer(state, self.settings.step_settings())) as trainer:
            return run_loop(
                trainer, self.source, self.settings.plan(), self.folder, watchers(trainer),
                stop, record=record, facts={"run": facts, "hash": hash_of_run(facts)},
                rate_flag=self.settings.flag("learning_rate"),
            )  # fmt: skip

    def check_saved(self) -> None:
        """Find out by the newest checkpoint's facts, before any work, that it is of another run.

        Raises ModelError.
        """
        facts = self.folder.checkpoints.newest_facts()
        if facts is not None:
            where = self.folder.checkpoints.folder
            check_facts(Fields(dict(facts), where, ModelError), self.facts)

    def load_saved(self) -> None:
        """Read the newest checkpoint, to go on from it.

        Raises ModelError where it belongs to another run or none is sound, and as `Checkpoints`.
        """
        found = self.folder.checkpoints.newest()
        if found is None:
            return
        _, saved, self.faults = found
        facts = Fields(dict(saved.facts), self.folder.checkpoints.folder, ModelError)
        check_facts(facts, self.facts)
        self.saved, self.done = saved, facts.integer("step")


def measure_step(
    arithmetic: Arithmetic,
    layout: TrainedLayout,
    settings: StepSettings,
    fit: TrainingFit,
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
        "format": {
            "version": VERSION, "depth": DEPTH, "queries": QUERIES, "segment": SEGMENT,
            "exponent": EXPONENT, "head_rows": HEAD_ROWS,
        },
        "model": dict(model),
        "settings": dict(settings),
        "data": dict(data),
    }  # fmt: skip
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
            raise _differing(found.where, part, name, ours)
    raise ModelError(f"{found.where} belongs to another run", "begin anew with another --out")


_TEXTS = {"examples": "the examples are not those", "text": "the text is not that"}
_OF_THE_MODEL = ("tokenizer", "vocab_size", "rehearsal")  # in the data's facts


def _differing(where: object, part: str, name: str, ours: Mapping[str, Any]) -> ModelError:
    """Words about the first fact that differs: its part of the facts, and its name there."""
    if part == "format":
        return ModelError(
            f"the run of {where} was begun by a picoedge whose arithmetic has other bits",
            "resume with that picoedge, or begin anew with another --out",
        )
    words = _TEXTS.get(ours[part].get("kind", "")) if part == "data" else None
    if words is not None and name not in _OF_THE_MODEL:
        return ModelError(
            f"{where}: {words} of this run",
            "restore what it was begun with, or begin anew with another --out",
        )
    return ModelError(
        f"{where} belongs to another run: its {f'{part} {name}'.strip()} differs",
        "resume with the settings it was begun with, or begin anew with another --out",
    )


def _first_difference(theirs: Any, ours: Any) -> str | None:
    """`learning_rate` of two objects; "" of other values; None where they are equal."""
    if theirs == ours:
        return None
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return next((name for name in ours if theirs.get(name) != ours[name]), "")
    return ""
