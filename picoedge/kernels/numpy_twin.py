"""The kernels in NumPy: the reference, and what runs where there is no C compiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from picoedge.kernels.api import AttentionShape, Residual
from picoedge.kernels.blocks import (
    TILE_ROWS,
    U8,
    MatrixSpec,
    Weights,
    dequantize,
    unpack_planes,
)
from picoedge.kernels.numpy_attention import BoundAttend, NumpyCache, rms_norm
from picoedge.kernels.numpy_matmul import multiply, quantize

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


class NumpyKernels:
    """The `Kernels` protocol with nothing but NumPy."""

    name = "numpy"

    def __init__(self, threads: int = 1) -> None:
        self.threads = max(1, threads)

    def kv_cache(self, n_ctx: int, shape: AttentionShape, exact: bool) -> NumpyCache:
        """Zeroed keys and values of one layer; see `Kernels.kv_cache`."""
        return NumpyCache(n_ctx, shape, exact)

    def project(
        self,
        source: Residual,
        weights: Sequence[Weights],
        biases: Sequence[F32 | None],
        out: F32,
    ) -> BoundProject:
        """See `Kernels.project`."""
        return BoundProject(source, tuple(weights), tuple(biases), out)

    def attend(
        self,
        qkv: F32,
        shape: AttentionShape,
        rope: tuple[F32, F32],
        norms: tuple[F32, F32] | None,
        eps: float,
        cache: NumpyCache,
        out: F32,
    ) -> BoundAttend:
        """See `Kernels.attend`."""
        return BoundAttend(qkv, shape, rope, norms, eps, cache, out)

    def project_sum(
        self, x: F32, activation: str | None, weights: Weights | None, sums: F64
    ) -> BoundProjectSum:
        """See `Kernels.project_sum`."""
        return BoundProjectSum(x, activation, weights, sums)

    def gather(self, weights: Weights, ids: Sequence[int], out: F32) -> None:
        """See `Kernels.gather`."""
        for i, token in enumerate(ids):
            shard, row = divmod(token, weights.spec.rows)
            out[i] = _row(weights.spec, weights.shard(shard), row)

    def close(self) -> None:
        """Nothing to stop."""


def _row(spec: MatrixSpec, shard: U8, row: int) -> F32:
    if spec.format.bits == 32:
        return spec.plane(shard, "values").view(np.float32)[row]
    tile, row = divmod(row, TILE_ROWS)
    one = MatrixSpec(spec.format, TILE_ROWS, spec.cols, superblock=spec.superblock)
    buffer = np.zeros(one.nbytes, np.uint8)
    for name in one.planes:
        one.plane(buffer, name)[0] = spec.plane(shard, name)[tile]
    return dequantize(one, unpack_planes(one, buffer))[row]


@dataclass(frozen=True, eq=False)
class BoundProject:
    """See `Kernels.project`."""

    source: Residual
    weights: tuple[Weights, ...]
    biases: tuple[F32 | None, ...]
    out: F32

    def __call__(self, n: int, first: int = 0) -> None:
        x = quantize(self._input(first, n))
        at = 0
        for weights, bias in zip(self.weights, self.biases, strict=True):
            for shard in range(weights.count):
                rows = slice(at, at + weights.spec.rows)
                self.out[: n - first, rows] = multiply(weights, shard, x)
                at = rows.stop
            if bias is not None:
                self.out[: n - first, at - weights.total_rows : at] += bias

    def _input(self, first: int, n: int) -> F32:
        """Add the pending sums to the residual stream; its norm, [n - first, H]."""
        source = self.source
        x = source.x[first:n]
        if source.sums is not None:
            added = source.sums[first:n].astype(np.float32)
            if source.post_norm is not None:
                added = rms_norm(added, source.post_norm, source.eps)
            x += added
        return rms_norm(x, source.norm, source.eps)


@dataclass(frozen=True, eq=False)
class BoundProjectSum:
    """See `Kernels.project_sum`."""

    x: F32
    activation: str | None
    weights: Weights | None
    sums: F64

    def __call__(self, n: int) -> None:
        self.sums[:n] = 0
        if self.weights is None:
            return
        x, cols = quantize(self._input(n)), self.weights.spec.cols
        for shard in range(self.weights.count):
            part = x.columns(shard * cols, (shard + 1) * cols)
            self.sums[:n] += multiply(self.weights, shard, part)

    def _input(self, n: int) -> F32:
        x = self.x[:n]
        if self.activation is None:
            return x
        gate, up = np.split(x, 2, axis=1)
        act = silu(gate) if self.activation == "silu" else gelu_tanh(gate)
        return act * up


def silu(x: F32) -> F32:
    """x / (1 + exp(-x)); exp may overflow to inf, and the quotient is then rightly 0."""
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def gelu_tanh(x: F32) -> F32:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (1 + np.tanh(inner))
