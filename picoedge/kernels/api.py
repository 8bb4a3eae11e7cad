"""The operations of a kernels backend (native or NumPy): a model uses these and nothing below them.

An operation (`Project`, `Attend`, `ProjectSum`) names its weights and buffers. It is bound once and
then called for each chunk of tokens, so that a call passes a few integers instead of packing
arguments. All buffers have room for N tokens (the chunk size of a model); a call computes the first
`n`.

Sums over shards stay in f64 and are rounded to f32 once, by the operation that reads them: the
f64 sums of several boards, added, give the bits that one board alone would have computed.

    kernels = load_kernels("native", threads=4)
    source = Residual(x, sums, None, norm, 1e-6)
    project = kernels.project(Project(source, [q, k, v], [None] * 3, qkv))
    project(n)  # qkv[:n] = rms_norm(x[:n] + sums[:n]) times the rows of q, k and v
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from picoedge.kernels.arrays import F16, F32, F64, Array
from picoedge.kernels.blocks import BLOCK_COLS, TILE_ROWS, Weights


@dataclass(frozen=True, eq=False)
class Residual:
    """The input of a projection: the residual stream, with sums that are still to be added to it.

    First x += rms_norm(f32(sums)) * post_norm (no norm if `post_norm` is None; nothing if `sums` is
    None). Then the product reads rms_norm(x) * norm = x / sqrt(mean(x^2) + eps) * norm (Zhang and
    Sennrich 2019). x f32 [N, H], sums f64 [N, H], post_norm and norm f32 [H].
    """

    x: F32
    sums: F64 | None
    post_norm: F32 | None
    norm: F32
    eps: float


@dataclass(frozen=True)
class AttentionShape:
    """Numbers of heads, their size, the scale of the scores, and the sliding window (0: none).

    q of one token is [q_heads, head_dim], k and v are [kv_heads, head_dim]; query head h reads
    key-value head h // (q_heads // kv_heads).
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0


class KvCache:
    """Keys and values of one layer, zeroed; each backend has an order of its own for the elements.

    `bits` 32 is f32, 16 is f16, 8 is int8 with a scale, f16(amax / 127), for every 32 dimensions of
    a head (the last block may have fewer). Positions may be overwritten; nothing beyond the current
    position is ever read, and pages that were never written take no memory. `nbytes` is the size of
    the full cache.
    """

    def __init__(self, n_ctx: int, shape: AttentionShape, bits: int) -> None:
        self.n_ctx = padded_positions(n_ctx)
        assert bits in (32, 16, 8), bits
        size = (shape.kv_heads, self.n_ctx, shape.head_dim)
        dtype = {32: np.float32, 16: np.float16, 8: np.int8}[bits]
        self.keys: Array = np.zeros(size, dtype)
        self.values: Array = np.zeros(size, dtype)
        self.key_scales: F16 | None = None
        self.value_scales: F16 | None = None
        if bits == 8:
            blocks = (*size[:2], scale_blocks(shape.head_dim))
            self.key_scales, self.value_scales = (np.zeros(blocks, np.float16) for _ in range(2))
        self.nbytes = kv_cache_bytes(n_ctx, shape.kv_heads, shape.head_dim, bits)  # when full


@dataclass(frozen=True, eq=False)
class Project:
    """out [N, sum of total_rows] = the source times each matrix (rows stacked), plus biases.

    A bias is f32 [total_rows]. Quantized matrices take activations in int8 blocks of 32 (scale
    amax/127, rounded half to even); f32 matrices take f32, in the order of `sgemm.h`. `out` may be
    some columns of a wider array. `reuse_input`: the project before this one had the same tokens
    and source; its input is reused, and x is not changed.
    """

    source: Residual
    weights: Sequence[Weights]
    biases: Sequence[F32 | None]
    out: F32
    reuse_input: bool = False


@dataclass(frozen=True, eq=False)
class Attend:
    """Append k and v to the cache and attend causally. qkv [N, (q + 2 kv heads) * head_dim].

    `norms` (q_norm, k_norm, f32 [head_dim]) are RMS norms of each head before rope. `rope` is (cos,
    sin), each f32 [n_ctx, head_dim / 2]; halves are rotated: with x = (a, b),
    (a cos - b sin, b cos + a sin). out [N, q_heads * head_dim]. With native kernels the order of
    the sums for a position depends on the position alone, never on n; with NumPy one token and
    several agree to f32 rounding.
    """

    qkv: F32
    shape: AttentionShape
    rope: tuple[F32, F32]
    norms: tuple[F32, F32] | None
    eps: float
    cache: KvCache
    out: F32


@dataclass(frozen=True, eq=False)
class ProjectSum:
    """sums f64 [N, rows] = f32 partials of each shard's columns of x, added in f64.

    With `activation` ("silu" or "gelu_tanh") x is [N, 2 * total_cols] and the input is
    activation(first half) * second half; else x is [N, total_cols]. `weights` None: zeros.
    `accumulate`: the partials are added, in the same order, to what `sums` holds: a matrix may come
    in several runs of shards.
    """

    x: F32
    activation: str | None
    weights: Weights | None
    sums: F64
    accumulate: bool = False


LOW_RANK_STEP = 16  # ranks are padded to a multiple
SUM_STEP = 2.0**-30  # of what is added to f64 sums


@dataclass(frozen=True, eq=False)
class LowRankPart:
    """Some columns of the input times a low-rank matrix B A, added to some columns of the output.

    `a` f32 [columns, padded rank], A transposed, zeros beyond the rank; `b` f32 [rank, rows], B
    transposed, its rows contiguous. `column`: the first one of the input; `out_offset`: of the
    output.
    """

    a: F32
    b: F32
    column: int
    out_offset: int


@dataclass(frozen=True, eq=False)
class LowRank:
    """What an adapter adds to the `Project` or the `ProjectSum` that was called before it, in f32.

    After a project `source` is that project's, whose sums have been added to x, and `out` its
    output: out += B (A norm(x)). After a project_sum `x`, `activation` and `sums` are its own:
    each part, one shard's columns, adds an f32 partial, rounded to a multiple of SUM_STEP so that
    f64 sums stay exact. Sums of a product run in one order, whatever n is and the other parts are.
    """

    parts: Sequence[LowRankPart]
    x: F32
    out: F32 | None = None
    sums: F64 | None = None
    source: Residual | None = None
    activation: str | None = None

    @property
    def width(self) -> int:
        """Columns of the input."""
        return int(self.x.shape[1]) // (1 if self.activation is None else 2)


class BoundProduct(Protocol):
    """A bound `Project`, `ProjectSum` or `LowRank`."""

    def __call__(self, n: int, first: int = 0) -> None:
        """Compute tokens first .. n-1; row i of a project's `out`, or a sum's x, is first + i."""


class BoundAttend(Protocol):
    """A bound `Attend`."""

    def __call__(self, n: int, position: int) -> None:
        """Tokens 0 .. n-1 have positions position .. position+n-1.

        Raises MemoryBudgetError if there is no memory for the scores.
        """


class Kernels(Protocol):
    """One backend. Used from one thread at a time; several may exist in one process."""

    name: str
    threads: int

    def project(self, op: Project) -> BoundProduct:
        """Bind a projection."""

    def attend(self, op: Attend) -> BoundAttend:
        """Bind attention."""

    def project_sum(self, op: ProjectSum) -> BoundProduct:
        """Bind a summed projection."""

    def low_rank(self, op: LowRank) -> BoundProduct:
        """Bind what an adapter adds."""

    def close(self) -> None:
        """Stop the threads. Idempotent."""


def padded_positions(n_ctx: int) -> int:
    """Positions there is room for: whole tiles of 16 keys."""
    return -(-n_ctx // TILE_ROWS) * TILE_ROWS


def scale_blocks(head_dim: int) -> int:
    """Blocks of 32 dimensions, each with a scale in an 8-bit cache; the last may be smaller."""
    return -(-head_dim // BLOCK_COLS)


def kv_cache_bytes(n_ctx: int, kv_heads: int, head_dim: int, bits: int) -> int:
    """Bytes of the full cache of one layer, with either backend; `bits` is 32, 16 or 8."""
    of_row = head_dim * bits // 8
    if bits == 8:
        of_row += 2 * scale_blocks(head_dim)
    return 2 * padded_positions(n_ctx) * kv_heads * of_row
