"""The parameters of a model that is trained: weights as `MicroBatch` reads them, and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from picoedge.kernels.arrays import F32, I32
from picoedge.kernels.training import TrainingKernels


class Linear(Protocol):
    """A matrix [rows, cols]: trained, or frozen with an adapter."""

    @property
    def reads_input(self) -> bool:
        """Whether `vjp` reads x; otherwise x may hold anything then."""
        ...

    def forward(self, kernels: TrainingKernels, x: F32, out: F32) -> None:
        """out [n, rows] = x [n, cols] times the matrix, transposed."""
        ...

    def vjp(
        self, kernels: TrainingKernels, x: F32, dy: F32, dx: F32, *, accumulate: bool = False
    ) -> None:
        """dx = dy times the matrix; its own gradients = or, with `accumulate`, += theirs."""
        ...


@dataclass(frozen=True, eq=False)
class Dense:
    """A trained matrix and its gradient, f32 [rows, cols] each."""

    weight: F32
    gradient: F32
    reads_input = True

    def forward(self, kernels: TrainingKernels, x: F32, out: F32) -> None:
        """See `Linear`."""
        kernels.multiply(x, self.weight.T, out)

    def vjp(
        self, kernels: TrainingKernels, x: F32, dy: F32, dx: F32, *, accumulate: bool = False
    ) -> None:
        """See `Linear`."""
        kernels.multiply(dy.T, x, self.gradient, accumulate=accumulate)
        kernels.multiply(dy, self.weight, dx)


@dataclass(frozen=True, eq=False)
class Gain:
    """A norm's weights, f32 [width], and their gradient; None: they are frozen."""

    weight: F32
    gradient: F32 | None = None


class Embedding(Protocol):
    """The rows of the vocabulary at the input."""

    def gather(self, tokens: I32, out: F32) -> None:
        """out [n, hidden] = the tokens' rows."""
        ...

    def scatter(self, kernels: TrainingKernels, tokens: I32, dx: F32) -> None:
        """Add dx [n, hidden] to the gradients of the tokens' rows, in the order of the tokens."""
        ...


@dataclass(frozen=True, eq=False)
class TiedEmbedding:
    """An embedding that is the head's matrix too: the head's vjp sets its gradient first."""

    table: Dense

    def gather(self, tokens: I32, out: F32) -> None:
        """See `Embedding`."""
        np.take(self.table.weight, tokens, axis=0, out=out)

    def scatter(self, kernels: TrainingKernels, tokens: I32, dx: F32) -> None:
        """See `Embedding`."""
        kernels.add_rows(dx, tokens, self.table.gradient)


@dataclass(frozen=True, eq=False)
class Layer:
    """The weights of one layer, and gradients of one thread."""

    input_norm: Gain
    qkv: Linear
    o: Linear
    pre_ffn_norm: Gain
    gate_up: Linear
    down: Linear
    qkv_bias: Gain | None = None
    head_norms: tuple[Gain, Gain] | None = None  # of q and of k
    post_attention_norm: Gain | None = None
    post_ffn_norm: Gain | None = None


@dataclass(frozen=True, eq=False)
class Parameters:
    """The weights of a model, and gradients of one thread."""

    embedding: Embedding
    layers: Sequence[Layer]
    final_norm: Gain
    head: Linear
