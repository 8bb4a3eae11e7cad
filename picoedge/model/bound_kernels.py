"""The bound kernels of a layer's shards, the buffers of a chunk of tokens, and the rope tables.

A long chunk of tokens has two lanes: while the sums of one are on the network, the other is
computed (two-batch overlap).
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from picoedge.config import UNTURNED, ModelConfig, RopeScaling
from picoedge.kernels.api import (
    Attend,
    BoundProduct,
    Kernels,
    LowRank,
    LowRankPart,
    Project,
    ProjectSum,
)
from picoedge.kernels.arrays import F32, F64
from picoedge.store.window.weights import BoundSpan

_Finish = Callable[[], None]
# Starts adding up sums f64 [n, hidden] over all slices, in place; the function it returns, if any,
# waits until they are complete.
Reduce = Callable[[F64], _Finish | None]

LANES_FROM, LANE_STEP = 64, 16  # least tokens of a chunk with two lanes; a lane is a multiple
_DIGITS = 24  # of powers, before they are rounded to f64


class Lane:
    """Tokens first .. end-1 of a chunk, `n` of them; `position` is that of the first."""

    def __init__(self, first: int, end: int, position: int) -> None:
        self.first, self.end, self.position = first, end, position
        self.n = end - first
        self._finish: _Finish | None = None

    def begin(self, reduce: Reduce, sums: F64) -> None:
        """Start the reduction of the lane's rows of `sums`, f64 [N, hidden]."""
        self._finish = reduce(sums[self.first : self.end])

    def finish(self) -> None:
        """Wait for the reduction that was begun last, if any."""
        finish, self._finish = self._finish, None
        if finish is not None:
            finish()


def lanes_of(n: int, position: int, *, tied: bool) -> list[Lane]:
    """Two lanes for a long chunk if this slice is `tied` to others, else one.

    Every board must split alike, since a sum has the rows of one lane.
    """
    if not tied or n < LANES_FROM:
        return [Lane(0, n, position)]
    half = n // 2 // LANE_STEP * LANE_STEP
    return [Lane(0, half, position), Lane(half, n, position + half)]


class SpanKernels:
    """The bound kernels of a span of attention shards, or of FFN shards, which do not attend."""

    def __init__(
        self, kernels: Kernels, held: BoundSpan, project: Project, attend: Attend | None,
        project_sum: ProjectSum,
    ) -> None:  # fmt: skip
        self.held = held
        self.project = kernels.project(project)
        self.attend = None if attend is None else kernels.attend(attend)
        self.project_sum = kernels.project_sum(project_sum)

    def __call__(self, lane: Lane) -> None:
        """Compute the partial sums of the lane's tokens over these shards."""
        self.project(lane.end, lane.first)
        if self.attend is not None:
            self.attend(lane.n, lane.position)
        self.project_sum(lane.end, lane.first)


class AdaptedSpanKernels(SpanKernels):
    """A span of shards, and what an adapter adds to its two products."""

    def __init__(
        self, kernels: Kernels, held: BoundSpan, project: Project, attend: Attend | None,
        project_sum: ProjectSum, project_parts: Sequence[LowRankPart],
        sum_parts: Sequence[LowRankPart],
    ) -> None:  # fmt: skip
        super().__init__(kernels, held, project, attend, project_sum)
        source, x, sums = project.source, project_sum.x, project_sum.sums
        act = project_sum.activation
        rows = LowRank(project_parts, source.x, out=project.out, source=source)
        columns = LowRank(sum_parts, x, sums=sums, activation=act)
        self.add_rows = kernels.low_rank(rows) if project_parts else None
        self.add_columns = kernels.low_rank(columns) if sum_parts else None

    def __call__(self, lane: Lane) -> None:
        """Compute the partial sums of the lane's tokens over these shards."""
        self.project(lane.end, lane.first)
        if self.add_rows is not None:
            self.add_rows(lane.end, lane.first)
        if self.attend is not None:
            self.attend(lane.n, lane.position)
        self.project_sum(lane.end, lane.first)
        if self.add_columns is not None:
            self.add_columns(lane.end, lane.first)


@dataclass(frozen=True, eq=False)
class HeadKernel:
    """The bound kernel of a span of vocabulary shards."""

    held: BoundSpan
    project: BoundProduct

    def __call__(self, n: int, first: int) -> None:
        """Compute the logits of tokens first .. n-1 for these rows of the vocabulary."""
        self.held.acquire()
        self.project(n, first)
        self.held.release()


class Workspace:
    """Activations of one chunk of up to N = `batch` tokens, shared by all spans of all layers.

    `qkv`, `attention` (outputs of heads) and `gate_up` have room for the widest span of shards,
    whose widths are given.
    """

    def __init__(self, batch: int, hidden: int, qkv: int, attention: int, gate_up: int) -> None:
        self.x = np.zeros((batch, hidden), np.float32)  # the residual stream
        self.sums = np.zeros((batch, hidden), np.float64)  # of the last sublayer, not in x yet
        self.qkv, self.attention, self.gate_up = (
            np.zeros(batch * width, np.float32) for width in (qkv, attention, gate_up)
        )

    def rows(self, buffer: F32, width: int) -> F32:
        """A span's part of one of the buffers, f32 [N, width]."""
        return buffer[: len(self.x) * width].reshape(len(self.x), width)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in vars(self).values())


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling, n_ctx: int = 0) -> F64:
    """Radians a position adds to each pair of dimensions, f64 [head_dim / 2] (arXiv 2104.09864).

    LongRoPE's second divisors (arXiv 2402.13753) are for contexts beyond the first trained one.
    """
    inverse = _inverse_powers(theta, head_dim)
    is_long = scaling.long_factors and n_ctx > scaling.original_max_position_embeddings
    if divisors := scaling.long_factors if is_long else scaling.freq_factors:
        return inverse / np.asarray(divisors, dtype=np.float64)
    if scaling.kind == "linear":
        return inverse / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(inverse, scaling)
    return inverse


def _inverse_powers(theta: float, head_dim: int) -> F64:
    """theta to the power of -2i / head_dim, f64 [head_dim / 2], each the nearest there is.

    By decimals: NumPy has other powers on processors with AVX-512, far positions multiply the
    difference, and boards have to agree to the bit.
    """
    with decimal.localcontext(decimal.Context(prec=_DIGITS)):
        base = decimal.Decimal(theta)
        exponents = (decimal.Decimal(-2 * i / head_dim) for i in range(head_dim // 2))
        return np.array([float(base**exponent) for exponent in exponents])


def _llama3(inverse: F64, scaling: RopeScaling) -> F64:
    """Stretch wavelengths beyond the trained context, keep short ones, a ramp between (Llama 3.1).

    f64 [head_dim / 2] -> f64 [head_dim / 2].
    """
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * inverse / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * inverse + (1 - kept) * inverse / scaling.factor


def rope_tables(config: ModelConfig, n_ctx: int, *, windowed: bool) -> tuple[F32, F32]:
    """(cos, sin), each f32 [n_ctx, head_dim / 2], for the windowed or the other layers.

    Gemma 3's windowed layers have their own base, and no scaling.
    """
    own_base = windowed and config.architecture == "gemma3"
    theta = config.rope_local_theta if own_base else config.rope_theta
    scaling = RopeScaling() if own_base else config.rope_scaling
    inverse = inverse_frequencies(config.head_dim, theta, scaling, n_ctx)
    angles = np.outer(np.arange(n_ctx), inverse)
    turned = np.asarray(scaling.freq_factors or (1.0,)) < UNTURNED
    factor = np.where(turned, scaling.attention_factor, 1.0)
    return (factor * np.cos(angles)).astype(np.float32), (factor * np.sin(angles)).astype(
        np.float32
    )
