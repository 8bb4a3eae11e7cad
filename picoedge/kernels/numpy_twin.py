"""The kernels in NumPy: the reference, and what runs where there is no C compiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from picoedge.kernels.api import AttentionShape, Residual
from picoedge.kernels.blocks import Weights
from picoedge.kernels.numpy_activations import Activations
from picoedge.kernels.numpy_attention import BoundAttend, NumpyCache, rms_norm
from picoedge.kernels.numpy_matmul import PlainSummed, Projection, Summed, summed
from picoedge.kernels.numpy_team import Team

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


class NumpyKernels:
    """The `Kernels` protocol with nothing but NumPy."""

    name = "numpy"

    def __init__(self, threads: int = 1) -> None:
        self._team = Team(threads)
        self.threads = self._team.threads

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
        projection = Projection(weights, self.threads)
        ends = np.cumsum([one.total_rows for one in weights]).tolist()
        added = [
            (slice(end - len(bias), end), bias)
            for bias, end in zip(biases, ends, strict=True)
            if bias is not None
        ]
        return BoundProject(self._team, source, projection, added, out)

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
        return BoundAttend(self._team, qkv, shape, rope, norms, eps, cache, out)

    def project_sum(
        self, x: F32, activation: str | None, weights: Weights | None, sums: F64
    ) -> BoundProjectSum:
        """See `Kernels.project_sum`."""
        matrix = None if weights is None else summed(weights, self.threads)
        return BoundProjectSum(self._team, x, activation, matrix, sums)

    def close(self) -> None:
        """Stop the threads. Idempotent."""
        self._team.close()


@dataclass(frozen=True, eq=False)
class BoundProject:
    """See `Kernels.project`. `biases` are with the columns of `out` they are added to."""

    team: Team
    source: Residual
    projection: Projection
    biases: list[tuple[slice, F32]]
    out: F32

    def __call__(self, n: int, first: int = 0) -> None:
        x, out = Activations(self._input(first, n)), self.out[: n - first]
        self.team.run(self.projection.jobs(x, out))
        for columns, bias in self.biases:
            out[:, columns] += bias

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

    team: Team
    x: F32
    activation: str | None
    matrix: Summed | PlainSummed | None
    sums: F64

    def __call__(self, n: int) -> None:
        if self.matrix is None:
            self.sums[:n] = 0
            return
        x = Activations(self._input(n))
        self.team.run(self.matrix.jobs(x, self.sums[:n]))

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
        out: F32 = np.exp(-x)
    out += 1
    return np.divide(x, out, out=out)


def gelu_tanh(x: F32) -> F32:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    out: F32 = x * x
    out *= np.float32(0.044715)
    out += 1
    out *= x
    out *= np.float32(np.sqrt(2 / np.pi))
    np.tanh(out, out=out)
    out += 1
    out *= x
    out *= np.float32(0.5)
    return out
