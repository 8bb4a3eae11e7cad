"""Sums of gradients: the same bits in any order, near the sum in f64."""

from __future__ import annotations

import ctypes as ct
from itertools import permutations

import numpy as np
import pytest

from picoedge.kernels.arrays import F32
from picoedge.kernels.loader import load_training_library
from picoedge.kernels.sums import GradientSums, NotFiniteError, padded
from picoedge.kernels.training_abi import SUM_BLOCK

N = padded(3 * SUM_BLOCK + 5)


@pytest.fixture(scope="module")
def library() -> ct.CDLL:
    library = load_training_library()
    assert library is not None
    return library


def gradients(count: int = 4) -> list[F32]:
    """Of all sizes, some far larger than their neighbours."""
    random = np.random.default_rng(0)
    made = [
        (random.standard_normal(N) * 10.0 ** random.integers(-9, -1, N)).astype(np.float32)
        for _ in range(count)
    ]
    made[1][5], made[2][700], made[0][9] = 3.0, -1e4, 1e-42
    return made


def test_any_order_has_the_same_bits(library: ct.CDLL) -> None:
    sums, results = GradientSums(library, N, 4), set[bytes]()
    for order in permutations(gradients()):
        for gradient in order:
            sums.add(gradient)
        out = np.empty(N, np.float32)
        sums.take(out)
        results.add(out.tobytes())
    assert len(results) == 1
    right = sum(gradient.astype(np.float64) for gradient in gradients())
    assert np.linalg.norm(out - right) < 1e-6 * np.linalg.norm(right)


def test_one_gradient_is_itself_to_half_a_unit(library: ct.CDLL) -> None:
    sums, out = GradientSums(library, N, 1), np.empty(N, np.float32)
    gradient = gradients()[3]
    sums.add(gradient)
    sums.take(out)
    wrong = np.abs(out.astype(np.float64) - gradient)
    assert (wrong <= 2.0**-37 + np.abs(gradient) * 2.0**-24).all()


def test_rows_are_added_as_they_are_needed(library: ct.CDLL) -> None:
    n = padded(200 * SUM_BLOCK)
    sums, out = GradientSums(library, n, 64), np.empty(n, np.float32)
    large = np.full(n, 2.5, np.float32)
    for _ in range(64):
        sums.add(large)
    sums.take(out)
    assert (out == 160).all()
    sums.take(out)
    assert not out.any()  # the next one begins at zero


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (np.nan, "no number"), (np.inf, "infinite"), (-np.inf, "infinite"),
        (-2.0**20, r"-1\.05e\+06: sums take less than 1\.05e\+06"),
    ],
)  # fmt: skip
def test_a_gradient_that_cannot_be_summed_ends_the_step(
    library: ct.CDLL, value: float, what: str
) -> None:
    sums, gradient = GradientSums(library, N, 2), np.zeros(N, np.float32)
    gradient[SUM_BLOCK + 3] = value
    with pytest.raises(NotFiniteError, match=f"value {SUM_BLOCK + 3} of the gradient is {what}"):
        sums.add(gradient)
