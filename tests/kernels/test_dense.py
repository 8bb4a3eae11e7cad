"""f32 matrices: one order of sums, whatever the rows, tokens, threads, shards and vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_levels import Backends
from kernels_material import (
    Input,
    assert_close,
    draw_shards,
    pack,
    projected_alike,
    random_f32,
    summed,
    summed_alike,
)

from picoedge.kernels.arrays import F32
from picoedge.kernels.blocks import FORMATS, MatrixSpec, Weights
from picoedge.kernels.training import NativeTrainingKernels

fuzz = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TOKENS = st.integers(1, 19)
ROWS = st.integers(1, 50) | st.sampled_from([256, 300])
COLUMNS = st.integers(1, 9) | st.sampled_from([16, 17, 33])  # in 16s: a chain is of 256
CUTS = st.lists(st.integers(0, 100), max_size=3)


def dense(matrices: F32) -> Weights:
    """Shards of one matrix each, [count, rows, cols], with other bytes before and behind them."""
    count, rows, cols = matrices.shape
    spec = MatrixSpec(FORMATS["f32"], rows, cols, 64)
    stride = 64 + spec.nbytes + 64
    weights = Weights(spec, np.full(stride * count, 0xFF, np.uint8), stride, count)
    weights.plane("values")[...] = matrices
    return weights


@fuzz
@given(TOKENS, ROWS, COLUMNS, st.integers(1, 3), CUTS, st.integers(0, 99))
def test_rows_of_a_product(
    backends: Backends, n: int, rows: int, columns: int, count: int, cuts: list[int], seed: int
) -> None:
    """With a quantized matrix beside it where blocks of 32 fit."""
    matrices, source = (
        random_f32(seed, count, rows, 16 * columns),
        Input.draw(n, 16 * columns, seed),
    )
    weights = [dense(matrices)]
    if columns % 2 == 0:
        weights.append(pack("q8", draw_shards("q8", 5, 16 * columns, 1, seed)))
    biases = [random_f32(seed, rows * count), *[None] * (len(weights) - 1)]
    want = projected_alike(backends, source, weights, biases, cuts)
    numpy = source.project(backends.numpy, weights, biases)
    assert_close(want[0][:, : rows * count], numpy[0][:, : rows * count], 1e-5)
    cut = 1 + seed % rows
    some = source.project(backends.native[-1], [dense(matrices[:1, :cut])])[0]
    alone = source.project(backends.portable, [dense(matrices[:1])])[0]
    np.testing.assert_array_equal(some, alone[:, :cut])


@fuzz
@given(TOKENS, ROWS, COLUMNS, st.integers(1, 3), CUTS, st.sampled_from([None, "silu", "gelu_tanh"]))
def test_sums_over_shards(
    backends: Backends,
    n: int, rows: int, columns: int, count: int, cuts: list[int], activation: str | None,
) -> None:  # fmt: skip
    cols, halves = 16 * columns, 2 if activation else 1
    matrices, x = random_f32(rows, count, rows, cols), random_f32(n, n, halves * cols * count)
    weights = dense(matrices)
    shards = [dense(matrices[i : i + 1]) for i in range(count)]
    want = summed_alike(backends, x, activation, shards, weights, cuts)
    assert_close(want, summed(backends.numpy, x, activation, weights), 1e-5)


def test_many_tokens_and_rows(backends: Backends) -> None:
    """More than a product that is added to sums takes at once, and one token of them alone."""
    weights, x = dense(random_f32(1, 2, 530, 64)), random_f32(2, 500, 128)
    want = summed(backends.native[-1], x, None, weights)
    for kernels in backends.native[3:]:
        np.testing.assert_array_equal(summed(kernels, x, None, weights), want)
        np.testing.assert_array_equal(summed(kernels, x[444:445], None, weights), want[444:445])
    assert_close(want, summed(backends.numpy, x, None, weights), 1e-5)


@pytest.mark.parametrize("n", [1, 7])
def test_the_order_is_that_of_training(backends: Backends, n: int) -> None:
    x, matrix = random_f32(3, n, 704), random_f32(4, 70, 704)
    out = np.empty((n, 70), np.float32)
    NativeTrainingKernels(backends.library, "best").multiply(x, matrix.T, out)
    for kernels in backends.native:
        np.testing.assert_array_equal(summed(kernels, x, None, dense(matrix[None])), out)


def test_columns_the_vectors_do_not_fit_are_numpys(backends: Backends) -> None:
    weights, source = dense(random_f32(1, 1, 6, 72)), Input.draw(3, 72, 5)
    want = source.project(backends.numpy, [weights])[0]
    np.testing.assert_array_equal(source.project(backends.portable, [weights])[0], want)
    np.testing.assert_array_equal(
        summed(backends.portable, source.x, None, weights),
        summed(backends.numpy, source.x, None, weights),
    )
