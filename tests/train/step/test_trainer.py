"""Steps of training: the same bits with any number of threads, and a loss that falls."""

from __future__ import annotations

import hashlib
import math
from contextlib import closing

import numpy as np
import pytest
from training_material import tiny_config

from picoedge.kernels.loader import load_training_kernels, load_training_library
from picoedge.kernels.sums import GradientSums
from picoedge.train.state.layout import EMBEDDING, FINAL_NORM, Layout
from picoedge.train.step.batch import NO_TARGET, Batch
from picoedge.train.step.schedule import Schedule
from picoedge.train.step.trainer import (
    NoStepError,
    PlainSums,
    StepSettings,
    Trainer,
    TrainingState,
)

STEPS = 12
SETTINGS = StepSettings(4, 2, 24, Schedule(3e-3, 3, STEPS))
LAYOUT = Layout.of(tiny_config("llama"))


def batches() -> list[Batch]:
    """Text of a period of seven tokens, which is soon known."""
    text = np.arange(10_000, dtype=np.int32) % 7 + 3
    random = np.random.default_rng(1)
    starts = random.integers(0, 5000, (STEPS, 4, 2))
    return [
        Batch.of_windows(np.array([[text[at : at + 25] for at in row] for row in step], np.int32))
        for step in starts
    ]


def trainer(threads: int, *, exact: bool = True, kind: str | None = None) -> Trainer:
    library = load_training_library()
    assert library is not None
    state = TrainingState.initial(LAYOUT, 0)
    sums = GradientSums(library, LAYOUT.length, 4) if exact else PlainSums(LAYOUT.length)
    return Trainer(LAYOUT, state, SETTINGS, sums, lambda: load_training_kernels(kind), threads)


def run(threads: int, *, exact: bool = True, kind: str | None = None) -> tuple[str, list[float]]:
    with closing(trainer(threads, exact=exact, kind=kind)) as made:
        losses = [made.step(batch).loss for batch in batches()]
        return hashlib.sha256(made.state.weights.tobytes()).hexdigest(), losses


def test_threads_change_no_bit_and_the_loss_falls() -> None:
    one, losses = run(1)
    for threads in (2, 3):
        assert run(threads) == (one, losses)
    assert losses[0] == pytest.approx(np.log(160), rel=0.05)
    assert losses[-1] < losses[0] - 1


def test_numpy_trains_to_rounding() -> None:
    _, losses = run(1)
    _, theirs = run(2, exact=False, kind="numpy")
    np.testing.assert_allclose(losses, theirs, rtol=1e-4)


def test_a_loss_without_a_step_changes_nothing() -> None:
    with closing(trainer(2)) as made:
        before = made.state.weights.tobytes()
        first = batches()[0]
        loss = made.loss(first)
        assert made.state.weights.tobytes() == before
        assert made.step(first).loss == pytest.approx(loss, rel=1e-6)


def test_a_gradient_that_is_no_number_leaves_the_state() -> None:
    with closing(trainer(2)) as made:
        LAYOUT.tensors["1.down"].of(made.state.weights)[0, 0] = np.nan
        before = made.state.weights.tobytes()
        with pytest.raises(NoStepError, match=r"gradient of \S+ is no number"):
            made.step(batches()[0])
        assert (made.state.weights.tobytes(), made.state.step) == (before, 0)
        LAYOUT.tensors["1.down"].of(made.state.weights)[0, 0] = 0
        assert made.step(batches()[0]).step == 1


@pytest.mark.parametrize("exact", [True, False])
def test_a_loss_that_is_infinite_leaves_the_state(
    monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    with closing(trainer(2, exact=exact)) as made:
        before = made.state.weights.tobytes()
        with monkeypatch.context() as patched:
            patched.setattr(made, "_losses_and_gradients", lambda *args: math.inf)
            with pytest.raises(NoStepError, match="the loss is inf"):
                made.step(batches()[0])
        assert (made.state.weights.tobytes(), made.state.step) == (before, 0)
        assert made.step(batches()[0]).step == 1


def test_tokens_without_a_target_count_nothing() -> None:
    """Half of the targets left out: the loss is the mean over the others."""
    whole = batches()[0]
    odd = np.arange(whole.targets.shape[-1]) % 2 == 1
    halves = [
        Batch(whole.tokens, np.where(odd == left, NO_TARGET, whole.targets).astype(np.int32))
        for left in (True, False)
    ]
    with closing(trainer(2)) as made:
        losses = [made.loss(batch) for batch in (whole, *halves)]
        assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-6)
        nothing = Batch(whole.tokens, np.full_like(whole.targets, NO_TARGET))
        assert made.loss(nothing) == 0
        assert made.step(halves[0]).loss == pytest.approx(losses[1], rel=1e-6)


def test_the_layout_has_every_tensor_once() -> None:
    taken = np.zeros(LAYOUT.length, np.int32)
    for tensor in LAYOUT.tensors.values():
        taken[tensor.offset : tensor.offset + tensor.size] += 1
    assert taken.max() == 1
    assert taken.sum() == LAYOUT.parameters
    assert LAYOUT.tensors[EMBEDDING].offset == 0
    assert LAYOUT.tensors[FINAL_NORM].offset >= LAYOUT.decayed


def test_the_rate_rises_and_falls_to_a_tenth() -> None:
    rates = [Schedule(1.0, 4, 20).rate(step) for step in range(1, 21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
