"""Gradients of whole models: against finite differences, and the same bits however computed."""

from __future__ import annotations

import numpy as np
import pytest
from training_material import ARCHITECTURES, bound, random_weights, tiny_config

from picoedge.config import ModelConfig
from picoedge.kernels.arrays import F32, F64, I32
from picoedge.kernels.loader import load_training_kernels
from picoedge.kernels.training import TrainingKernels
from picoedge.model.vjps import MicroBatch

SEQUENCES, LENGTH = 2, 70  # more than a block of queries, and no multiple of anything
N = SEQUENCES * LENGTH


@pytest.fixture(params=ARCHITECTURES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return tiny_config(request.param)


@pytest.fixture
def batch() -> tuple[I32, I32]:
    """Tokens and targets, some of them without a loss."""
    random = np.random.default_rng(3)
    tokens, targets = (random.integers(0, 160, N).astype(np.int32) for _ in range(2))
    targets[5:9] = -1
    return tokens, targets


def gradients_of(
    config: ModelConfig,
    kernels: TrainingKernels,
    batch: tuple[I32, I32],
    *,
    recompute: bool = False,
) -> tuple[F64, dict[str, F32]]:
    gradients, parameters = bound(config, random_weights(config))
    work = MicroBatch(config, kernels, parameters, SEQUENCES, LENGTH, recompute=recompute)
    return work.losses_and_gradients(*batch, 1 / N), gradients


def loss_of(config: ModelConfig, weights: dict[str, F32], batch: tuple[I32, I32]) -> float:
    _, parameters = bound(config, weights)
    work = MicroBatch(config, load_training_kernels(), parameters, SEQUENCES, LENGTH)
    return float(work.losses(*batch).sum()) / N


def test_a_gradient_is_the_slope_of_the_loss(config: ModelConfig, batch: tuple[I32, I32]) -> None:
    losses, gradients = gradients_of(config, load_training_kernels(), batch)
    weights, random = random_weights(config), np.random.default_rng(4)
    assert losses.sum() / N == pytest.approx(loss_of(config, weights, batch), rel=1e-12)
    assert not losses[5:9].any()
    for name, weight in weights.items():
        way = random.standard_normal(weight.shape).astype(np.float32)
        way *= np.float32(0.01 * np.linalg.norm(weight) / np.linalg.norm(way))
        up, down = (
            loss_of(config, {**weights, name: weight + sign * way}, batch) for sign in (1, -1)
        )
        scale = float(np.linalg.norm(gradients[name]) * np.linalg.norm(way)) / weight.size**0.5
        slope = float((gradients[name] * way).sum())
        assert (up - down) / 2 == pytest.approx(slope, abs=0.02 * scale), name


def test_numpy_has_the_same_gradients_within_rounding(
    config: ModelConfig, batch: tuple[I32, I32]
) -> None:
    losses, gradients = gradients_of(config, load_training_kernels(), batch)
    theirs, others = gradients_of(config, load_training_kernels("numpy"), batch)
    np.testing.assert_allclose(losses, theirs, rtol=1e-5)
    for name, gradient in gradients.items():
        error = np.linalg.norm(gradient - others[name]) / np.linalg.norm(others[name])
        assert error < 1e-5, name


def test_a_forward_pass_that_is_repeated_changes_no_bit(
    config: ModelConfig, batch: tuple[I32, I32]
) -> None:
    kernels = load_training_kernels()
    losses, gradients = gradients_of(config, kernels, batch)
    again, repeated = gradients_of(config, kernels, batch, recompute=True)
    assert losses.tobytes() == again.tobytes()
    for name, gradient in gradients.items():
        assert gradient.tobytes() == repeated[name].tobytes(), name


def test_texts_in_one_sequence_do_not_see_each_other(
    config: ModelConfig, batch: tuple[I32, I32]
) -> None:
    lengths = [1, 2, 66, 1, 25, 45]  # the sequences are 70 long
    documents = np.repeat(np.arange(6, dtype=np.int32), lengths)
    kernels, weights = load_training_kernels(), random_weights(config)
    gradients, parameters = bound(config, weights)
    work = MicroBatch(config, kernels, parameters, SEQUENCES, LENGTH)
    losses = work.losses_and_gradients(*batch, 1 / N, documents)
    alone, parameters = bound(config, weights)
    sums = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for number, length in enumerate(lengths):
        rows = documents == number
        one = MicroBatch(config, kernels, parameters, 1, length)
        theirs = one.losses_and_gradients(batch[0][rows], batch[1][rows], 1 / N)
        np.testing.assert_allclose(losses[rows], theirs, rtol=2e-5)
        for name, gradient in alone.items():
            sums[name] += gradient
    for name, gradient in gradients.items():
        error = np.linalg.norm(gradient - sums[name]) / np.linalg.norm(sums[name])
        assert error < 1e-4, name
    others = batch[0].copy()
    others[documents != 2] = 7
    again = work.losses(others, batch[1], documents)
    assert again[documents == 2].tobytes() == losses[documents == 2].tobytes()
