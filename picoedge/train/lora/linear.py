"""A frozen matrix with low-rank adapters on some of its rows, forward and back.

y = W x + s B (A x)         W frozen [rows, cols], A [r, cols], B [rows of it, r]
dB = s dy^T (A x),  dA = (s dy B)^T x,  dx = dy W + (s dy B) A
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picoedge.kernels.arrays import F32, I32
from picoedge.kernels.blocks import RowGather, Weights
from picoedge.kernels.stacked import StackedWeights
from picoedge.kernels.training import TrainingKernels
from picoedge.store.encodings import RowEmbedding


@dataclass(frozen=True, eq=False)
class TrainedLowRank:
    """An adapter of the rows [rows.start, rows.stop) of a matrix, and its gradients.

    a f32 [r, cols], b f32 [rows, r]; scale: s.
    """

    rows: slice
    a: F32
    b: F32
    a_gradient: F32
    b_gradient: F32
    scale: float


@dataclass(frozen=True, eq=False)
class AdaptedLinear:
    """`model.parameters.Linear`: the matrix is never written, nor is it ever whole in f32."""

    matrix: StackedWeights
    adapters: Sequence[TrainedLowRank] = ()

    @property
    def reads_input(self) -> bool:
        """See `Linear`."""
        return bool(self.adapters)

    def forward(self, kernels: TrainingKernels, x: F32, out: F32) -> None:
        """See `Linear`."""
        kernels.multiply_stacked(x, self.matrix, out)
        for adapter in self.adapters:
            low = _scaled(kernels, x, adapter.a.T, adapter.scale)
            kernels.multiply(low, adapter.b.T, out[:, adapter.rows], accumulate=True)

    def vjp(
        self, kernels: TrainingKernels, x: F32, dy: F32, dx: F32, *, accumulate: bool = False
    ) -> None:
        """See `Linear`."""
        kernels.multiply_stacked(dy, self.matrix, dx, back=True)
        for adapter in self.adapters:
            d = dy[:, adapter.rows]
            low = _scaled(kernels, x, adapter.a.T, adapter.scale)
            kernels.multiply(d.T, low, adapter.b_gradient, accumulate=accumulate)
            d_low = _scaled(kernels, d, adapter.b, adapter.scale)
            kernels.multiply(d_low.T, x, adapter.a_gradient, accumulate=accumulate)
            kernels.multiply(d_low, adapter.a, dx, accumulate=True)


def _scaled(kernels: TrainingKernels, x: F32, right: F32, scale: float) -> F32:
    """x right, times the scale: f32 [n, r]."""
    out = np.empty((len(x), right.shape[1]), np.float32)
    kernels.multiply(x, right, out)
    out *= np.float32(scale)
    return out


class FrozenEmbedding:
    """`model.parameters.Embedding` of a pack: rows become f32 one by one, and have no gradient."""

    def __init__(self, rows: Weights | RowEmbedding) -> None:
        self._rows = RowGather(rows) if isinstance(rows, Weights) else rows

    def gather(self, tokens: I32, out: F32) -> None:
        """See `Embedding`."""
        self._rows.gather(tokens.tolist(), out)

    def scatter(self, kernels: TrainingKernels, tokens: I32, dx: F32) -> None:
        """See `Embedding`."""
