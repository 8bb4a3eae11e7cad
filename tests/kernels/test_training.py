"""The kernels of training: right, alike in C and NumPy, and the same bits on every level."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picoedge.kernels.api import AttentionShape
from picoedge.kernels.arrays import F32, Array
from picoedge.kernels.loader import load_training_kernels
from picoedge.kernels.reference.training import NumpyTrainingKernels
from picoedge.kernels.training import (
    SEGMENT,
    Attention,
    NativeTrainingKernels,
    TrainingKernels,
    adam_step,
)

Op = Callable[[TrainingKernels], list[Array]]


def check(levels: list[NativeTrainingKernels], op: Op, *, tolerance: float = 1e-5) -> list[Array]:
    """The result, equal to the bit on all levels, and near NumPy's."""
    first, *others = (op(kernels) for kernels in levels)
    for result in others:
        for one, other in zip(first, result, strict=True):
            assert one.tobytes() == other.tobytes()
    for one, other in zip(first, op(NumpyTrainingKernels()), strict=True):
        error = np.linalg.norm(one - other) / max(1e-30, float(np.linalg.norm(other)))
        assert error < tolerance
    return first


def random_f32(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


SIDES, DEPTHS = st.integers(1, 40), st.integers(1, 40) | st.sampled_from([255, 256, 257, 513])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SIDES, SIDES, DEPTHS, st.booleans(), st.booleans(), st.booleans())
def test_products(
    levels: list[NativeTrainingKernels],
    m: int, n: int, k: int, turn_a: bool, turn_b: bool, accumulate: bool,
) -> None:  # fmt: skip
    a = random_f32(k, m).T if turn_a else random_f32(m, k)
    b = random_f32(n, k, seed=1).T if turn_b else random_f32(k, n, seed=1)

    def multiply(kernels: TrainingKernels) -> list[Array]:
        out = np.full((m, n), 2.0 if accumulate else np.nan, np.float32)
        kernels.multiply(a, b, out, accumulate=accumulate)
        return [out]

    out = check(levels, multiply)[0]
    right = a.astype(np.float64) @ b + (2 if accumulate else 0)
    np.testing.assert_allclose(out, right, rtol=1e-4, atol=1e-4 * k**0.5)


def test_products_of_several_panels(levels: list[NativeTrainingKernels]) -> None:
    a, b = random_f32(245, 260), random_f32(1930, 260, seed=1).T

    def multiply(kernels: TrainingKernels) -> list[Array]:
        out = np.empty((245, 1930), np.float32)
        kernels.multiply(a, b, out)
        return [out]

    out = check(levels[1:], multiply)[0]
    np.testing.assert_allclose(out, a.astype(np.float64) @ b, rtol=1e-3, atol=1e-3)


def test_a_row_has_the_same_bits_whatever_rows_are_multiplied_with_it(
    levels: list[NativeTrainingKernels],
) -> None:
    a, b = random_f32(100, 300), random_f32(300, 70)
    whole, part = np.empty((100, 70), np.float32), np.empty((3, 70), np.float32)
    levels[-1].multiply(a, b, whole)
    levels[-1].multiply(a[50:53], b, part)
    assert whole[50:53].tobytes() == part.tobytes()


def test_a_product_of_nothing_is_zero(levels: list[NativeTrainingKernels]) -> None:
    out = np.full((3, 4), np.nan, np.float32)
    levels[0].multiply(np.empty((3, 0), np.float32), np.empty((0, 4), np.float32), out)
    assert not out.any()


def test_norm_and_its_vjp(levels: list[NativeTrainingKernels]) -> None:
    x, gain, dy = random_f32(37, 96), random_f32(96), random_f32(37, 96, seed=1)

    def norm(kernels: TrainingKernels) -> list[Array]:
        out, scale, dx = np.empty_like(x), np.empty(37, np.float32), np.ones_like(x)
        dgain = np.ones_like(gain)
        kernels.norm(x, gain, out, scale, 1e-5)
        kernels.norm_vjp(x, gain, scale, dy, dx, dgain)
        frozen = np.ones_like(x)
        kernels.norm_vjp(x, gain, scale, dy, frozen, None)
        assert frozen.tobytes() == dx.tobytes()
        return [out, scale, dx, dgain]

    out, _, dx, dgain = check(levels, norm)
    wide = x.astype(np.float64)
    scale = 1 / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5)
    unit = wide * scale
    inner = dy * gain
    right = scale * (inner - unit * (inner * unit).mean(1, keepdims=True))
    np.testing.assert_allclose(out, unit * gain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx - 1, right, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(dgain - 1, (dy * unit).sum(0), rtol=1e-3, atol=1e-4)


def test_a_rotation_and_the_one_back(levels: list[NativeTrainingKernels]) -> None:
    x, angles = random_f32(30, 80), random_f32(15, 8)
    rope = np.cos(angles), np.sin(angles)

    def rotate(kernels: TrainingKernels) -> list[Array]:
        there = x.copy()
        kernels.rotate(there, rope, 3, 16)
        back = there.copy()
        kernels.rotate(back, rope, 3, 16, back=True)
        return [there, back]

    there, back = check(levels, rotate)
    np.testing.assert_allclose(back, x, rtol=1e-5, atol=1e-6)
    assert there[:, 48:].tobytes() == np.ascontiguousarray(x[:, 48:]).tobytes()


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "head_dim", "window"),
    [(70, 4, 2, 16, 0), (200, 3, 3, 32, 40), (64, 2, 1, 64, 0), (5, 1, 1, 16, 3), (1, 2, 2, 16, 0)],
)
def test_attention_and_its_vjp(
    levels: list[NativeTrainingKernels],
    length: int, heads: int, kv_heads: int, head_dim: int, window: int,
) -> None:  # fmt: skip
    shape = AttentionShape(heads, kv_heads, head_dim, head_dim**-0.5, window)
    qkv = random_f32(length, (heads + 2 * kv_heads) * head_dim)
    d_out = random_f32(length, heads * head_dim, seed=1)

    def attend(kernels: TrainingKernels) -> list[Array]:
        out, dqkv = np.empty_like(d_out), np.empty_like(qkv)
        tops, scales = (np.empty((heads, length), np.float32) for _ in range(2))
        op = Attention(shape, qkv, out, tops, scales)
        kernels.attention(op)
        kernels.attention_vjp(op, d_out, dqkv)
        return [out, dqkv]

    out, dqkv = check(levels, attend)
    right, gradient = attention_f64(shape, qkv, d_out)
    np.testing.assert_allclose(out, right, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dqkv, gradient, rtol=1e-3, atol=1e-5)


def attention_f64(shape: AttentionShape, qkv: F32, d_out: F32) -> tuple[Array, Array]:
    """The output and the gradient of qkv, in f64."""
    length, dim = len(qkv), shape.head_dim
    heads = qkv.reshape(length, -1, dim).astype(np.float64)
    d = d_out.reshape(length, -1, dim).astype(np.float64)
    out, gradient = np.zeros_like(d), np.zeros_like(heads)
    at = np.arange(length)
    seen = at[None] <= at[:, None]
    if shape.window:
        seen &= at[None] > at[:, None] - shape.window
    for head in range(shape.q_heads):
        key = shape.q_heads + head // (shape.q_heads // shape.kv_heads)
        value = key + shape.kv_heads
        scores = np.where(seen, heads[:, head] @ heads[:, key].T * shape.scale, -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        out[:, head] = weights @ heads[:, value]
        inner = d[:, head] @ heads[:, value].T
        inner = weights * (inner - (weights * inner).sum(1, keepdims=True)) * shape.scale
        gradient[:, head] = inner @ heads[:, key]
        gradient[:, key] += inner.T @ heads[:, head]
        gradient[:, value] += weights.T @ d[:, head]
    return out.reshape(length, -1), gradient.reshape(length, -1)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates_and_their_vjp(levels: list[NativeTrainingKernels], activation: str) -> None:
    gate_up, d = random_f32(9, 64) * 4, random_f32(9, 32)
    gate_up[0, :4] = -200, 200, -90, 90

    def gated(kernels: TrainingKernels) -> list[Array]:
        out, gradient = np.empty_like(d), gate_up.copy()
        kernels.gated(gate_up, out, activation)
        kernels.gated_vjp(gradient, d, activation)
        return [out, gradient]

    def gate_f64(x: Array) -> Array:
        z = x if activation == "silu" else 1.5957691216057308 * (x + 0.044715 * x**3)
        return x / (1 + np.exp(-np.clip(z, -700, 700)))

    out, gradient = check(levels, gated)
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=1)
    slope = (gate_f64(gate + 1e-6) - gate_f64(gate - 1e-6)) / 2e-6
    np.testing.assert_allclose(out, gate_f64(gate) * up, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient[:, :32], d * up * slope, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient[:, 32:], d * gate_f64(gate), rtol=1e-5, atol=1e-6)


def test_losses_and_their_gradient(levels: list[NativeTrainingKernels]) -> None:
    logits = random_f32(20, 160) * 5
    targets = np.random.default_rng(0).integers(0, 160, 20).astype(np.int32)
    targets[3] = -1

    def entropy(kernels: TrainingKernels) -> list[Array]:
        gradient, losses = logits.copy(), np.empty(20)
        kernels.cross_entropy(gradient, targets, losses, 0.25)
        return [gradient, losses]

    gradient, losses = check(levels, entropy)
    wide = logits.astype(np.float64)
    shares = np.exp(wide - wide.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    right = -np.log(shares[np.arange(20), targets])
    right[3] = 0
    np.testing.assert_allclose(losses, right, atol=1e-5)
    shares[np.arange(20), targets] -= 1
    shares[3] = 0
    np.testing.assert_allclose(gradient, shares / 4, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("vocabulary", [16, 48, 1000, 49_152])
def test_the_loss_of_equal_logits_is_the_logarithm(
    levels: list[NativeTrainingKernels], vocabulary: int
) -> None:
    def entropy(kernels: TrainingKernels) -> list[Array]:
        losses = np.empty(1)
        logits = np.full((1, vocabulary), -2.5, np.float32)
        kernels.cross_entropy(logits, np.zeros(1, np.int32), losses, 1.0)
        return [losses]

    assert check(levels, entropy)[0][0] == pytest.approx(math.log(vocabulary), rel=1e-15, abs=0)


def test_gradients_of_rows_are_added_in_the_order_of_tokens(
    levels: list[NativeTrainingKernels],
) -> None:
    dx, tokens = random_f32(50, 16), np.random.default_rng(0).integers(0, 4, 50).astype(np.int32)

    def add(kernels: TrainingKernels) -> list[Array]:
        table = np.ones((5, 16), np.float32)
        kernels.add_rows(dx, tokens, table)
        return [table]

    table = check(levels, add, tolerance=1e-30)[0]
    assert (table[4] == 1).all()


def test_adamw_has_the_same_bits_in_numpy(levels: list[NativeTrainingKernels]) -> None:
    step = adam_step(3, 1e-3, gradient_scale=0.7)
    n = 100_003
    before = random_f32(n), random_f32(n, seed=1), abs(random_f32(n, seed=2))
    gradient = random_f32(n, seed=3)

    def adamw(kernels: TrainingKernels) -> list[Array]:
        weights, m, v = (each.copy() for each in before)
        kernels.adamw(step, weights, m, v, gradient)
        return [weights, m, v]

    for one, other in zip(check(levels, adamw), adamw(NumpyTrainingKernels()), strict=True):
        assert one.tobytes() == other.tobytes()


def test_squares_by_segment(levels: list[NativeTrainingKernels]) -> None:
    gradient = random_f32(2 * SEGMENT + 5)

    def squares(kernels: TrainingKernels) -> list[Array]:
        sums = np.empty(3)
        kernels.squares(gradient, sums)
        return [sums]

    sums = check(levels, squares, tolerance=1e-12)[0]
    assert sums[2] == pytest.approx(float((gradient[-5:].astype(np.float64) ** 2).sum()), rel=1e-14)


def test_fast_kernels_differ_by_rounding_alone(levels: list[NativeTrainingKernels]) -> None:
    fast, a, b = load_training_kernels(fast=True), random_f32(30, 40), random_f32(40, 50)
    exact, out = np.ones((30, 50), np.float32), np.ones((30, 50), np.float32)
    fast.multiply(a, b, out, accumulate=True)
    levels[0].multiply(a, b, exact, accumulate=True)
    np.testing.assert_allclose(out, exact, rtol=1e-4, atol=1e-4)
    assert not fast.is_exact
