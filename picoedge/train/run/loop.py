"""The loop of a run: steps, evaluations on held-out text, checkpoints, and its end.

    outcome = run_loop(trainer, source, plan, store, [progress, log], stop)

It knows nothing of what is trained, and reads no clock: what happens at which step is decided by
the step's number alone. A run that is resumed from a checkpoint therefore ends with the bits of one
that was never disturbed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from picoedge.errors import ModelError, PicoedgeError, StorageError
from picoedge.fields import Fields
from picoedge.train.state.checkpoints import Saved
from picoedge.train.step.batch import Batch
from picoedge.train.step.trainer import NoStepError, StepResult, TrainingState

FINISHED, EARLY, STOPPED = "finished", "early", "stopped"


class Stepper(Protocol):
    """The model in training: a `Trainer`."""

    @property
    def state(self) -> TrainingState:
        """Weights and moments after the last step."""
        ...

    def step(self, batch: Batch) -> StepResult:
        """See `Trainer.step`."""
        ...

    def loss(self, batch: Batch) -> float:
        """See `Trainer.loss`."""
        ...


class Batches(Protocol):
    """Text to train on: a `TokenSource`."""

    @property
    def held_out(self) -> Sequence[Batch]:
        """Text that is never trained on; may be empty."""
        ...

    def batch(self, step: int) -> Batch:
        """The batch of a step, which counts from 1: by the step's number alone."""
        ...


class RunStore(Protocol):
    """A run's place on the disk: a `RunFolder`."""

    def save(self, step: int, saved: Saved) -> Path:
        """Keep a checkpoint. Raises StorageError, and the last good one is there still."""
        ...

    def save_best(self, saved: Saved) -> Path:
        """Keep the weights of the lowest held-out loss so far. Raises StorageError."""
        ...


@dataclass(frozen=True)
class RunPlan:
    """Steps, and those that evaluate and save. All but `save_every` decides the run's result."""

    steps: int
    evaluate_every: int
    save_every: int
    patience: int = 0  # evaluations without a lower held-out loss, before the run ends; 0: any


@dataclass
class RunRecord:
    """Evaluations so far, as far as a resumed run has to know them."""

    held_out: float | None = None  # the last one
    best: float | None = None
    best_step: int = 0
    unimproved: int = 0  # evaluations since the best
    ended: str = ""

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return dict(vars(self))

    @classmethod
    def of(cls, fields: Fields) -> RunRecord:
        """From the facts of a checkpoint. Raises the error of the fields."""
        losses = {
            name: None if fields.values.get(name) is None else fields.number(name, -1e9, 1e9)
            for name in ("held_out", "best")
        }
        return cls(
            **losses,
            best_step=fields.integer("best_step"),
            unimproved=fields.integer("unimproved"),
            ended=fields.one_of("ended", ("", FINISHED, EARLY)),
        )


@dataclass(frozen=True)
class Outcome:
    """Outcome of a call of `run_loop`: FINISHED, EARLY (held-out loss), STOPPED (asked to)."""

    reason: str
    step: int
    record: RunRecord
    is_saved: bool  # whether the state at `step` is on the disk


class RunWatcher:
    """Is told of what happens in a run; overrides what it wants to know."""

    def stepped(self, result: StepResult, tokens: int) -> None:
        """A step of `tokens` targets is done."""

    def evaluated(self, step: int, loss: float, *, is_best: bool) -> None:
        """The held-out loss after a step; before the first one, of step 0."""

    def saved(self, step: int, path: Path) -> None:
        """A checkpoint is on the disk."""

    def not_saved(self, step: int, error: PicoedgeError) -> None:
        """A checkpoint, or the best weights, could not be written; training goes on."""


@dataclass(eq=False)
class _Loop:
    trainer: Stepper
    source: Batches
    plan: RunPlan
    store: RunStore
    watchers: Sequence[RunWatcher]
    record: RunRecord
    facts: Mapping[str, Any]
    rate_flag: str
    saved_step: int = -1

    def evaluate(self, step: int) -> None:
        held_out = self.source.held_out
        if not held_out:
            return
        counts = [batch.targets_counted for batch in held_out]
        losses = [self.trainer.loss(batch) for batch in held_out]
        loss = math.fsum(map(math.prod, zip(losses, counts, strict=True))) / max(1, sum(counts))
        record = self.record
        is_best = math.isfinite(loss) and (record.best is None or loss < record.best)
        record.held_out = loss if math.isfinite(loss) else None
        record.unimproved = 0 if is_best else record.unimproved + 1
        if is_best:
            record.best, record.best_step = loss, step
            self._save_best(step, loss)
        for watcher in self.watchers:
            watcher.evaluated(step, loss, is_best=is_best)

    def _save_best(self, step: int, loss: float) -> None:
        facts = {**self.facts, "step": step, "held_out": loss}
        try:
            self.store.save_best(Saved({"weights": self.trainer.state.weights}, facts))
        except StorageError as error:
            for watcher in self.watchers:
                watcher.not_saved(step, error)

    def save(self) -> bool:
        state = self.trainer.state
        if self.saved_step == state.step:
            return True
        arrays = {"weights": state.weights, "m": state.m, "v": state.v}
        facts = {**self.facts, "step": state.step, "record": self.record.to_json()}
        try:
            path = self.store.save(state.step, Saved(arrays, facts))
        except StorageError as error:
            for watcher in self.watchers:
                watcher.not_saved(state.step, error)
            return False
        self.saved_step = state.step
        for watcher in self.watchers:
            watcher.saved(state.step, path)
        return True

    def step(self) -> StepResult:
        number = self.trainer.state.step + 1
        try:
            batch = self.source.batch(number)
            result = self.trainer.step(batch)
        except NoStepError as error:
            self.save()
            raise self._no_step(number, error) from error
        except PicoedgeError:  # the data cannot be read any more
            self.save()
            raise
        for watcher in self.watchers:
            watcher.stepped(result, batch.targets_counted)
        return result

    def _no_step(self, step: int, error: PicoedgeError) -> PicoedgeError:
        return PicoedgeError(
            f"step {step} is not possible: {error.message}; the state is that of step {step - 1}",
            f"begin anew with half the {self.rate_flag}, or look at the data",
        )

    def after_step(self, step: int) -> None:
        """Evaluation and checkpoint that are due after a step."""
        plan, record = self.plan, self.record
        is_last = step >= plan.steps
        if is_last or step % plan.evaluate_every == 0:
            self.evaluate(step)
        if is_last:
            record.ended = FINISHED
        elif plan.patience and record.unimproved >= plan.patience:
            record.ended = EARLY
        if record.ended or step % plan.save_every == 0:
            self.save()


def run_loop(
    trainer: Stepper,
    source: Batches,
    plan: RunPlan,
    store: RunStore,
    watchers: Sequence[RunWatcher] = (),
    stop: Callable[[], bool] = lambda: False,
    *,
    record: RunRecord | None = None,
    facts: Mapping[str, Any] | None = None,
    rate_flag: str = "--learning-rate",
) -> Outcome:
    """Train from the trainer's state on, until the plan, the held-out loss or `stop` ends it.

    `record` is of the checkpoint that the state was read from; `facts` are written into each
    checkpoint; `rate_flag` names the learning rate to people. `stop` is asked before each step.
    Raises PicoedgeError where a loss or gradient is not finite, or the data cannot be read: the
    state before that step has been saved.
    """
    loop = _Loop(
        trainer, source, plan, store, watchers, record or RunRecord(), facts or {}, rate_flag
    )
    state = trainer.state
    if record is not None:
        loop.saved_step = state.step
    elif state.step == 0:
        loop.evaluate(0)
    while state.step < plan.steps and not loop.record.ended:
        if stop():
            return Outcome(STOPPED, state.step, loop.record, loop.save())
        loop.after_step(loop.step().step)
    reason = loop.record.ended or FINISHED
    return Outcome(reason, state.step, loop.record, loop.save())


def restored(saved: Saved, length: int, where: object) -> tuple[TrainingState, RunRecord]:
    """The state and record in a checkpoint that was read at `where`; the arrays are not copied.

    Raises ModelError where it has another shape.
    """
    fields = Fields(dict(saved.facts), where, ModelError, "it belongs to another run")
    arrays = []
    for name in ("weights", "m", "v"):
        array = saved.arrays.get(name)
        if array is None or len(array) != length:
            has = "no" if array is None else str(len(array))
            raise ModelError(
                f"{where} has {has} values of {name!r}, this model has {length}",
                "the checkpoint is of another model: choose another --out",
            )
        arrays.append(array)
    state = TrainingState(arrays[0], arrays[1], arrays[2], fields.integer("step"))
    return state, RunRecord.of(fields.object("record"))
