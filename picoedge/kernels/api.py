"""What a twin of the kernels offers. A model is written against this and nothing below it.

Operations are bound once to their weights and buffers and then called per chunk of tokens, so
that the cost of a call is a few machine words, not the packing of arguments. All buffers hold
up to N tokens (the chunk size a model was built for); a call works on the first `n`.

Sums over shards are kept in f64 and rounded to f32 once, by the operation that reads them:
whoever adds the f64 parts of several boards gets the bits that one board would have had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from picoedge.kernels.arrays import F32, F64
from picoedge.kernels.blocks import Weights


@dataclass(frozen=True, eq=False)
class Residual:
    """What a projection does to the residual stream before it reads it.

    x += rms_norm(f32(sums)) * post_norm (without the norm where `post_norm` is None); nothing
    where `sums` is None. x f32 [N, H], sums f64 [N, H], post_norm f32 [H]. Then the input of
    the product is rms_norm(x) * norm, norm f32 [H]: y = x / sqrt(mean(x^2) + eps) * norm.
    """

    x: F32
    sums: F64 | None
    post_norm: F32 | None
    norm: F32
    eps: float


@dataclass(frozen=True)
class AttentionShape:
    """Heads and their sizes, the score scale, and the window (0: none).

    q of one token is [q_heads, head_dim], k and v are [kv_heads, head_dim]; query head h reads
    key-value head h // (q_heads // kv_heads).
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0


class Project(Protocol):
    """Bound projection: residual, norm, then rows of every matrix; see `Kernels.project`."""

    def __call__(self, n: int, first: int = 0) -> None:
        """Do tokens first .. n-1 of the buffers; row i of `out` is for token first + i."""


class Attend(Protocol):
    """Bound attention; see `Kernels.attend`."""

    def __call__(self, n: int, position: int) -> None:
        """Tokens 0 .. n-1 stand at positions position .. position+n-1."""


class ProjectSum(Protocol):
    """Bound summed projection; see `Kernels.project_sum`."""

    def __call__(self, n: int, first: int = 0) -> None:
        """Make the sums of tokens first .. n-1; row i of `x` is for token first + i."""


class Kernels(Protocol):
    """One twin. Safe to use from one thread at a time; several may live in one process."""

    name: str
    threads: int

    def kv_cache(self, n_ctx: int, shape: AttentionShape, bits: int) -> Any:
        """Memory for keys and values of one layer, in the twin's own layout.

        `bits` 32 is f32, 16 is f16, 8 is int8 with a scale, f16(amax / 127), for every 32
        dimensions of a head (the last may have fewer). Positions may be overwritten; nothing
        beyond the current position is ever read, and what was never written takes no memory.
        Its `nbytes` is what `kv_cache_bytes` says.
        """

    def project(
        self,
        source: Residual,
        weights: Sequence[Weights],
        biases: Sequence[F32 | None],
        out: F32,
        *,
        reuse_input: bool = False,
    ) -> Project:
        """out [N, sum of total_rows] = the source times each matrix (rows stacked), plus biases.

        A bias is f32 [total_rows]. Quantized matrices take activations in int8 blocks of 32
        (scale amax/127, rounded half to even); f32 matrices take them as they are. `out` may be
        some columns of a wider array. `reuse_input`: the project before this one had the
        same tokens and source; its input is reused, and x is not changed.
        """

    def attend(
        self,
        qkv: F32,
        shape: AttentionShape,
        rope: tuple[F32, F32],
        norms: tuple[F32, F32] | None,
        eps: float,
        cache: Any,
        out: F32,
    ) -> Attend:
        """Append k and v to the cache and attend causally. qkv [N, (q + 2 kv heads) * head_dim].

        `norms` (q_norm, k_norm, f32 [head_dim]) are RMS norms of each head before rope. `rope`
        is (cos, sin), each f32 [n_ctx, head_dim / 2]; halves are rotated: with x = (a, b),
        (a cos - b sin, b cos + a sin). out [N, q_heads * head_dim]. In the native twin the
        order of the sums for a position depends on the position alone, never on n; in the NumPy
        twin one token and several agree to f32 rounding.
        """

    def project_sum(
        self,
        x: F32,
        activation: str | None,
        weights: Weights | None,
        sums: F64,
        *,
        accumulate: bool = False,
    ) -> ProjectSum:
        """sums f64 [N, rows] = f32 partials of each shard's columns of x, added in f64.

        With `activation` ("silu" or "gelu_tanh") x is [N, 2 * total_cols] and the input is
        activation(first half) * second half; else x is [N, total_cols]. `weights` None: zeros.
        `accumulate`: the partials are added, in the same order, to what `sums` holds: a matrix
        may come in several runs of shards.
        """

    def close(self) -> None:
        """Stop the twin's threads. Idempotent."""
