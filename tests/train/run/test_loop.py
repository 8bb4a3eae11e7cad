"""The loop: the same bits after any interruption, evaluations, an early end, faults."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_runs import LAYOUT, PLAN, STEPS, Events, Killed, PeriodicText, training

from picoedge.errors import ModelError, PicoedgeError, StorageError
from picoedge.train.run.folder import RunFolder
from picoedge.train.run.loop import EARLY, FINISHED, STOPPED, Outcome, restored, run_loop
from picoedge.train.state.checkpoints import Saved
from picoedge.train.step.batch import Batch
from picoedge.train.step.trainer import Trainer


def hash_of(trainer: Trainer) -> str:
    state = trainer.state
    return hashlib.sha256(
        b"".join(a.tobytes() for a in (state.weights, state.m, state.v))
    ).hexdigest()


@contextmanager
def opened(path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(path)
    try:
        yield folder
    finally:
        folder.close()


def session(
    path: Path, threads: int = 1, fails_at: int = -1, stop_at: int = -1
) -> tuple[Outcome, str, Events]:
    """One process's part of a run: from the newest checkpoint on, if there is one."""
    events = Events()
    with opened(path) as folder:
        found = folder.checkpoints.newest()
        state, record = (None, None) if found is None else restored(found[1], LAYOUT.length, path)
        with training(threads, state) as trainer:
            outcome = run_loop(
                trainer, PeriodicText(fails_at=fails_at), PLAN, folder, [events],
                lambda: trainer.state.step == stop_at, record=record,
            )  # fmt: skip
            return outcome, hash_of(trainer), events


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, str, Events]:
    return session(tmp_path_factory.mktemp("undisturbed") / "run")


def test_a_run_evaluates_saves_and_learns(undisturbed: tuple[Outcome, str, Events]) -> None:
    outcome, _, events = undisturbed
    assert (outcome.reason, outcome.step, outcome.is_saved) == (FINISHED, STEPS, True)
    assert events.of("step") == list(range(1, STEPS + 1))
    assert events.of("evaluated") == [0, 2, 4, 6, 8, 10]
    assert events.of("saved") == [3, 6, 9, 10]
    assert events.losses[-1] < events.losses[0] - 0.5
    assert outcome.record.best_step == STEPS


@pytest.mark.parametrize("threads", [1, 2])
def test_interrupted_runs_end_with_the_same_bits(
    tmp_path: Path, undisturbed: tuple[Outcome, str, Events], threads: int
) -> None:
    """Killed before the first checkpoint, right after one, and before the last step."""
    for fails_at in (2, 7, 10):
        with pytest.raises(Killed):
            session(tmp_path / "run", threads, fails_at)
    outcome, bits, _ = session(tmp_path / "run", 3 - threads)
    assert (bits, outcome) == (undisturbed[1], undisturbed[0])


def test_a_run_that_is_stopped_has_saved_its_last_step(
    tmp_path: Path, undisturbed: tuple[Outcome, str, Events]
) -> None:
    outcome, _, events = session(tmp_path / "run", stop_at=4)
    assert (outcome.reason, outcome.step, outcome.is_saved) == (STOPPED, 4, True)
    assert events.of("saved") == [3, 4]
    outcome, bits, events = session(tmp_path / "run")
    assert bits == undisturbed[1]
    assert events.of("step") == list(range(5, STEPS + 1))
    outcome, bits, events = session(tmp_path / "run")  # there is nothing left to do
    assert (outcome, bits, events.seen) == (undisturbed[0], undisturbed[1], [])


def test_a_checkpoint_that_is_cut_short_is_passed_over(
    tmp_path: Path, undisturbed: tuple[Outcome, str, Events]
) -> None:
    session(tmp_path / "run", stop_at=7)
    newest = tmp_path / "run/checkpoints/step-00000007.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    _, bits, events = session(tmp_path / "run")
    assert events.of("step") == [7, 8, 9, 10]
    assert bits == undisturbed[1]


class FullStore:
    """A disk that takes nothing between two steps."""

    def __init__(self, folder: RunFolder, full: range) -> None:
        self._folder, self._full = folder, full

    def save(self, step: int, saved: Saved) -> Path:
        if step in self._full:
            raise StorageError("no room", "free some space")
        return self._folder.save(step, saved)

    def save_best(self, saved: Saved) -> Path:
        if saved.facts["step"] in self._full:
            raise StorageError("no room", "free some space")
        return self._folder.save_best(saved)


def test_training_goes_on_where_a_checkpoint_cannot_be_written(
    tmp_path: Path, undisturbed: tuple[Outcome, str, Events]
) -> None:
    events = Events()
    with opened(tmp_path / "run") as folder, training() as trainer:
        outcome = run_loop(trainer, PeriodicText(), PLAN, FullStore(folder, range(5, 9)), [events])
        assert hash_of(trainer) == undisturbed[1]
        assert outcome == undisturbed[0]
        assert events.of("not saved") == [6, 6, 8]
        assert events.of("saved") == [3, 9, 10]


def test_a_last_checkpoint_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as folder, training() as trainer:
        store = FullStore(folder, range(4, 99))
        outcome = run_loop(
            trainer, PeriodicText(), PLAN, store, stop=lambda: trainer.state.step == 5
        )
        assert (outcome.reason, outcome.step, outcome.is_saved) == (STOPPED, 5, False)
        assert folder.checkpoints.steps() == [3]


def test_a_run_ends_early_when_held_out_text_gets_worse(tmp_path: Path) -> None:
    """The text held out has another period: what is learnt makes its loss worse."""
    text = PeriodicText()
    other = replace(text.held_out[0], targets=(text.held_out[0].targets + 40) % 160)
    plan, events = replace(PLAN, patience=2), Events()
    with opened(tmp_path / "run") as folder, training() as trainer:
        outcome = run_loop(trainer, PeriodicText([other]), plan, folder, [events])
        best = folder.read_best()
    assert outcome.reason == EARLY
    assert outcome.step < STEPS
    assert outcome.record.unimproved == 2
    assert best is not None
    assert best.facts["step"] == outcome.record.best_step == outcome.step - 4
    session(tmp_path / "run")
    _, _, after = session(tmp_path / "run")
    assert after.seen == []  # also when it is resumed


def test_without_held_out_text_nothing_is_evaluated(tmp_path: Path) -> None:
    events = Events()
    with opened(tmp_path / "run") as folder, training() as trainer:
        outcome = run_loop(trainer, PeriodicText([]), PLAN, folder, [events])
        assert (outcome.record.best, folder.read_best()) == (None, None)
    assert events.of("evaluated") == []


def test_a_gradient_that_is_no_number_stops_at_the_step_before(tmp_path: Path) -> None:
    class Spoilt(PeriodicText):
        def batch(self, step: int) -> Batch:
            if step == 5:
                LAYOUT.tensors["1.down"].of(trainer.state.weights)[0, 0] = np.nan
            return super().batch(step)

    with opened(tmp_path / "run") as folder, training() as trainer:
        with pytest.raises(PicoedgeError, match="step 5 is not possible") as caught:
            run_loop(trainer, Spoilt(), PLAN, folder, rate_flag="--rate")
        assert "is no number; the state is that of step 4" in caught.value.message
        assert "half the --rate" in caught.value.hint
        assert folder.checkpoints.steps() == [3, 4]


def test_data_that_cannot_be_read_any_more_costs_no_step(tmp_path: Path) -> None:
    class Damaged(PeriodicText):
        def batch(self, step: int) -> Batch:
            if step == 6:
                raise ModelError("train-00000.u16 is damaged")
            return super().batch(step)

    with opened(tmp_path / "run") as folder, training() as trainer:
        with pytest.raises(ModelError, match="is damaged"):
            run_loop(trainer, Damaged(), PLAN, folder)
        assert folder.checkpoints.steps() == [3, 5]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    session(tmp_path / "run", stop_at=2)
    with opened(tmp_path / "run") as folder:
        found = folder.checkpoints.newest()
    assert found is not None
    with pytest.raises(ModelError, match="this model has 256"):
        restored(found[1], 256, "x")
    facts = {**found[1].facts, "record": {"best_step": "2"}}
    with pytest.raises(ModelError, match="best_step is not an integer"):
        restored(Saved(found[1].arrays, facts), LAYOUT.length, "x")


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with opened(tmp_path / "run"), pytest.raises(PicoedgeError, match="another process trains in"):
        RunFolder(tmp_path / "run")
    with opened(tmp_path / "run"):
        pass
