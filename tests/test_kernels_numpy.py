"""The NumPy twin against plain f64 arithmetic on dequantized weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from picoedge.kernels.api import AttentionShape, Residual
from picoedge.kernels.blocks import (
    FORMATS,
    MatrixSpec,
    Quants,
    Weights,
    dequantize,
    pack_planes,
    unpack_planes,
)
from picoedge.kernels.numpy_twin import NumpyKernels

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
QUANTIZED = [name for name, fmt in FORMATS.items() if fmt.bits < 32]
EPS = 1e-5


@pytest.fixture(params=[1, 2, 3], ids=lambda t: f"{t}-threads")
def kernels(request: pytest.FixtureRequest) -> Iterator[NumpyKernels]:
    made = NumpyKernels(request.param)
    yield made
    made.close()


def random_quants(name: str, rows: int, cols: int, superblock: int, seed: int) -> Quants:
    rng = np.random.default_rng(seed)
    fmt, blocks = FORMATS[name], cols // 32
    q = rng.integers(0, 2**fmt.bits, (rows, cols), dtype=np.uint8)
    half = lambda *shape: (rng.standard_normal(shape) * 0.01).astype("<f2")  # noqa: E731
    if not fmt.superblocks:
        return Quants(q, half(rows, blocks), half(rows, blocks) if fmt.has_min else None)
    supers = half(rows, cols // superblock)
    if fmt.bits == 6:
        scales = rng.integers(-128, 128, (rows, 2 * blocks)).astype(np.int8)
        return Quants(q, scales, superscales=supers)
    scales, mins = rng.integers(0, 64, (2, rows, blocks), dtype=np.uint8)
    return Quants(q, scales, mins, supers, half(rows, cols // superblock))


def random_weights(
    name: str, rows: int, cols: int, count: int = 1, seed: int = 0
) -> tuple[Weights, list[F64]]:
    """A run of shards with gaps around each matrix, and each shard's matrix in f64."""
    superblock = 0
    if FORMATS[name].superblocks:
        superblock = next(s for s in (256, 128, 64, 32) if cols % s == 0)
    spec = MatrixSpec(FORMATS[name], rows, cols, 128, superblock)
    stride = 128 + spec.nbytes + 64
    data = np.random.default_rng(99).integers(0, 256, stride * count, dtype=np.uint8)
    weights, plain = Weights(spec, data, stride, count), []
    for i in range(count):
        shard = weights.shard(i)
        if name == "f32":
            values = np.random.default_rng(seed + i).standard_normal((rows, cols))
            spec.plane(shard, "values")[...] = values
            plain.append(values.astype(np.float32).astype(np.float64))
            continue
        shard[128:] = 0
        pack_planes(spec, random_quants(name, rows, cols, superblock, seed + i), shard)
        plain.append(dequantize(spec, unpack_planes(spec, shard)).astype(np.float64))
    return weights, plain


def blocked(x: npt.NDArray[Any], name: str) -> F64:
    """x as the product sees it: in int8 blocks of 32, unless the matrix is f32."""
    if name == "f32":
        return x.astype(np.float64)
    cut = x.astype(np.float32).reshape(len(x), -1, 32)
    amax = np.abs(cut).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    whole = np.rint(cut * inverse).astype(np.float64)
    return (whole * (amax / np.float32(127)).astype(np.float64)).reshape(x.shape)


def normed(x: npt.NDArray[Any], weight: F32, eps: float = EPS) -> F64:
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + eps) * weight


def close(got: npt.NDArray[Any], want: npt.NDArray[Any], tolerance: float = 2e-6) -> None:
    """Within `tolerance` of the largest magnitude."""
    scale = float(np.abs(want).max()) or 1.0
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=tolerance)


def source_of(n: int, hidden: int, seed: int = 5, *, post: bool = False) -> Residual:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, hidden)).astype(np.float32)
    norm = rng.uniform(0.5, 1.5, hidden).astype(np.float32)
    post_norm = rng.uniform(0.5, 1.5, hidden).astype(np.float32) if post else None
    return Residual(x, rng.standard_normal((n, hidden)), post_norm, norm, EPS)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("n", "rows", "cols", "count"), [
    (1, 16, 32, 1), (1, 50, 96, 3), (3, 17, 64, 2), (5, 7, 512, 1), (40, 33, 256, 2),
])  # fmt: skip
def test_project(
    kernels: NumpyKernels, name: str, n: int, rows: int, cols: int, count: int
) -> None:
    weights, plain = random_weights(name, rows, cols, count)
    source = source_of(n, cols)
    assert source.sums is not None
    residual = source.x + source.sums.astype(np.float32)
    out = np.full((n + 1, rows * count), np.nan, np.float32)
    kernels.project(source, [weights], [None], out)(n)
    np.testing.assert_array_equal(source.x, residual)
    want = blocked(normed(residual, source.norm).astype(np.float32), name) @ np.vstack(plain).T
    close(out[:n], want, 2e-5)
    assert np.isnan(out[n]).all()
