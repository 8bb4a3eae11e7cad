"""The operations of training, forward and vector-Jacobian products (vjp), in f32.

A backend works on whole micro-batches: one object a thread, with scratch of its own. The C kernels
have the same bits on every board; the NumPy twin (`reference.training`) agrees to rounding.
"""

from __future__ import annotations

import ctypes as ct
import math
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from picoedge.kernels.api import AttentionShape
from picoedge.kernels.arrays import F32, F64, I32
from picoedge.kernels.blocks import WeightsRecord, weight_records
from picoedge.kernels.elementary import power
from picoedge.kernels.stacked import StackedWeights
from picoedge.kernels.training_abi import QUERIES, AdamRecord, AttentionRecord, bind_training

DEPTH = 256  # products that one chain of sums has, as in sgemm.h; belongs to the format of a run
VERSION = 2  # of all other arithmetic of a step: a change of bits has another one
SEGMENT = 65_536  # values whose squares have a sum of their own; belongs to the format of a run
_ACTIVATIONS = {"silu": 1, "gelu_tanh": 2}


@dataclass(frozen=True)
class AdamStep:
    """The numbers of one step of AdamW (Loshchilov and Hutter 2019, algorithm 2), for `adamw`."""

    gradient_scale: float
    beta1: float
    rest1: float
    beta2: float
    rest2: float
    decay: float  # 1 - rate * weight decay
    rate: float  # divided by the first moment's bias correction
    correction: float  # 1 / sqrt of the second moment's
    epsilon: float


def adam_step(
    step: int,
    rate: float,
    *,
    gradient_scale: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.95),
    epsilon: float = 1e-8,
    weight_decay: float = 0.1,
) -> AdamStep:
    """The numbers of step `step`, which counts from 1."""
    beta1, beta2 = betas
    return AdamStep(
        gradient_scale,
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        1 - rate * weight_decay,
        rate / (1 - power(beta1, step)),
        1 / math.sqrt(1 - power(beta2, step)),
        epsilon,
    )


@dataclass(frozen=True, eq=False)
class Attention:
    """Causal attention within one sequence of T tokens, for `attention` and `attention_vjp`.

    qkv and its gradient dqkv f32 [T, (q + 2 kv heads) * head_dim], rotated; out and its gradient
    d_out f32 [T, q heads * head_dim]; tops and scales f32 [q heads, T] are what the vjp needs of
    the softmax: each row's largest score, and 1 / the sum of exponentials.
    """

    shape: AttentionShape
    qkv: F32
    out: F32
    tops: F32
    scales: F32


class TrainingKernels(Protocol):
    """One thread's kernels. Arrays are contiguous f32 unless said otherwise; widths in 16s."""

    name: str
    is_exact: bool  # the same bits on every board

    def multiply(self, a: F32, b: F32, out: F32, *, accumulate: bool = False) -> None:
        """out [m, n] = or += a [m, k] b [k, n]; a and b may be transposed views."""
        ...

    def multiply_stacked(
        self, a: F32, matrix: StackedWeights, out: F32, *, back: bool = False
    ) -> None:
        """out [n, rows] = a [n, cols] times the matrix's transpose, as `multiply` on its values.

        `back`: out [n, cols] = a [n, rows] times the matrix. Only panels of it become f32.
        """
        ...

    def norm(self, x: F32, gain: F32, out: F32, scale: F32, eps: float) -> None:
        """out = x * scale * gain, where scale [n] = 1 / sqrt(mean(x^2) + eps); x [n, width]."""
        ...

    def norm_vjp(self, x: F32, gain: F32, scale: F32, dy: F32, dx: F32, dgain: F32 | None) -> None:
        """dx += and dgain [width] += the vjp of `norm` at dy; no dgain where gain is frozen."""
        ...

    def rotate(
        self, x: F32, rope: tuple[F32, F32], heads: int, head_dim: int, *, back: bool = False
    ) -> None:
        """Rotate the first `heads` heads of each row of x; row i has position i % length.

        rope: (cos, sin), f32 [length, head_dim / 2] each. `back`: the vjp.
        """
        ...

    def attention(self, op: Attention) -> None:
        """op.out = softmax(q k^T * scale) v, and op.tops, op.scales."""
        ...

    def attention_vjp(self, op: Attention, d_out: F32, dqkv: F32) -> None:
        """dqkv = the vjp at d_out."""
        ...

    def gated(self, gate_up: F32, out: F32, activation: str) -> None:
        """out [n, width] = activation(gate) * up; gate_up [n, 2 * width]."""
        ...

    def gated_vjp(self, gate_up: F32, d: F32, activation: str) -> None:
        """The vjp at d [n, width], in place of gate_up."""
        ...

    def cross_entropy(self, logits: F32, targets: I32, losses: F64, weight: float) -> None:
        """losses [n] of targets (none below 0); weight * their gradient in place of the logits."""
        ...

    def add_rows(self, dx: F32, tokens: I32, table: F32) -> None:
        """table[tokens[i]] += dx[i], in the order of i; dx [n, width]."""
        ...

    def adamw(self, step: AdamStep, weights: F32, m: F32, v: F32, gradient: F32) -> None:
        """One step in place of weights and both moments."""
        ...

    def squares(self, gradient: F32, sums: F64) -> None:
        """sums[s] = the sum of squares of the s-th SEGMENT of values, in f64."""
        ...


def _at(array: F32 | F64 | I32) -> int:
    assert array.flags.c_contiguous, "the C file takes contiguous arrays"
    return int(array.ctypes.data)


def _matrix(array: F32) -> tuple[int, int, int]:
    """Address and strides in elements of a view of two dimensions."""
    assert array.dtype == np.float32
    assert array.ndim == 2
    return int(array.ctypes.data), array.strides[0] // 4, array.strides[1] // 4


class NativeTrainingKernels:
    """`TrainingKernels` in C: the same bits on every board."""

    is_exact = True

    def __init__(self, library: ct.CDLL, level: str) -> None:
        bind_training(library)
        self.name = f"native {level}"
        self._lib = library
        self._scratch = np.empty(library.pe_sgemm_scratch(), np.float32)
        self._records: WeakKeyDictionary[StackedWeights, ct.Array[WeightsRecord]]
        self._records = WeakKeyDictionary()

    def multiply(self, a: F32, b: F32, out: F32, *, accumulate: bool = False) -> None:
        """See `TrainingKernels`."""
        (m, k), n = a.shape, b.shape[1]
        assert b.shape[0] == k
        assert out.shape == (m, n)
        at, row, column = _matrix(out)
        assert column == 1 or n == 1, "rows of the output have gaps"
        self._lib.pe_sgemm(
            m, n, k, *_matrix(a), *_matrix(b), at, row, accumulate, _at(self._scratch)
        )

    def multiply_stacked(
        self, a: F32, matrix: StackedWeights, out: F32, *, back: bool = False
    ) -> None:
        """See `TrainingKernels`."""
        n, k = (matrix.cols, matrix.rows) if back else (matrix.rows, matrix.cols)
        assert a.shape == (len(out), k)
        assert out.shape[1] == n
        records = self._records.get(matrix)
        if records is None:
            records = self._records[matrix] = weight_records(matrix.parts)
        at, row, column = _matrix(out)
        assert column == 1 or n == 1, "rows of the output have gaps"
        self._lib.pe_multiply_stacked(
            len(out), n, k, *_matrix(a), ct.addressof(records), len(records),
            matrix.by_columns, back, at, row, _at(self._scratch),
        )  # fmt: skip

    def norm(self, x: F32, gain: F32, out: F32, scale: F32, eps: float) -> None:
        """See `TrainingKernels`."""
        n, width = x.shape
        assert out.shape == x.shape
        assert scale.shape == (n,)
        assert gain.shape == (width,)
        self._lib.pe_norm(_at(x), _at(gain), _at(out), _at(scale), n, width, eps)

    def norm_vjp(self, x: F32, gain: F32, scale: F32, dy: F32, dx: F32, dgain: F32 | None) -> None:
        """See `TrainingKernels`."""
        assert dy.shape == dx.shape == x.shape
        assert dgain is None or dgain.shape == gain.shape
        into = None if dgain is None else _at(dgain)
        self._lib.pe_norm_vjp(_at(x), _at(gain), _at(scale), _at(dy), _at(dx), into, *x.shape)

    def rotate(
        self, x: F32, rope: tuple[F32, F32], heads: int, head_dim: int, *, back: bool = False
    ) -> None:
        """See `TrainingKernels`."""
        n, stride = x.shape
        cos, sin = rope
        assert cos.shape == sin.shape == (len(cos), head_dim // 2)
        assert heads * head_dim <= stride
        sign = -1.0 if back else 1.0
        self._lib.pe_rotate(_at(x), _at(cos), _at(sin), n, len(cos), heads, head_dim, stride, sign)

    def attention(self, op: Attention) -> None:
        """See `TrainingKernels`."""
        self._lib.pe_attention(ct.byref(self._record(op, op.out, op.qkv)))

    def attention_vjp(self, op: Attention, d_out: F32, dqkv: F32) -> None:
        """See `TrainingKernels`."""
        assert d_out.shape == op.out.shape
        assert dqkv.shape == op.qkv.shape
        self._lib.pe_attention_vjp(ct.byref(self._record(op, d_out, dqkv)))

    def _record(self, op: Attention, d_out: F32, dqkv: F32) -> AttentionRecord:
        shape, (length, stride) = op.shape, op.qkv.shape
        heads, kv_heads = shape.q_heads, shape.kv_heads
        assert stride == (heads + 2 * kv_heads) * shape.head_dim
        assert op.out.shape == (length, heads * shape.head_dim)
        assert op.tops.shape == op.scales.shape == (heads, length)
        columns = [4 * shape.head_dim * head for head in (0, heads, heads + kv_heads)]
        self._reserve(2 * QUERIES * (length + 16))
        return AttentionRecord(
            *(_at(op.qkv) + column for column in columns),
            _at(op.out), _at(op.tops), _at(op.scales), _at(d_out),
            *(_at(dqkv) + column for column in columns),
            _at(self._scratch), length, stride, op.out.shape[1],
            heads, kv_heads, shape.head_dim, shape.window, shape.scale,
        )  # fmt: skip

    def _reserve(self, more: int) -> None:
        """Scratch for products, and for `more` floats."""
        need = self._lib.pe_sgemm_scratch() + more
        if len(self._scratch) < need:
            self._scratch = np.empty(need, np.float32)

    def gated(self, gate_up: F32, out: F32, activation: str) -> None:
        """See `TrainingKernels`."""
        n, width = out.shape
        assert gate_up.shape == (n, 2 * width)
        self._lib.pe_gated(_at(gate_up), _at(out), n, width, _ACTIVATIONS[activation])

    def gated_vjp(self, gate_up: F32, d: F32, activation: str) -> None:
        """See `TrainingKernels`."""
        n, width = d.shape
        assert gate_up.shape == (n, 2 * width)
        self._lib.pe_gated_vjp(_at(gate_up), _at(d), n, width, _ACTIVATIONS[activation])

    def cross_entropy(self, logits: F32, targets: I32, losses: F64, weight: float) -> None:
        """See `TrainingKernels`."""
        n, vocabulary = logits.shape
        assert targets.shape == losses.shape == (n,)
        assert targets.dtype == np.int32
        self._lib.pe_cross_entropy(_at(logits), _at(targets), _at(losses), n, vocabulary, weight)

    def add_rows(self, dx: F32, tokens: I32, table: F32) -> None:
        """See `TrainingKernels`."""
        assert dx.shape == (len(tokens), table.shape[1])
        assert tokens.dtype == np.int32
        self._lib.pe_add_rows(_at(dx), _at(tokens), _at(table), *dx.shape)

    def adamw(self, step: AdamStep, weights: F32, m: F32, v: F32, gradient: F32) -> None:
        """See `TrainingKernels`."""
        assert weights.shape == m.shape == v.shape == gradient.shape == (len(weights),)
        record = AdamRecord(**vars(step))
        self._lib.pe_adamw(
            ct.byref(record), _at(weights), _at(m), _at(v), _at(gradient), len(weights)
        )

    def squares(self, gradient: F32, sums: F64) -> None:
        """See `TrainingKernels`."""
        assert sums.shape == (-(-len(gradient) // SEGMENT),)
        self._lib.pe_squares(_at(gradient), _at(sums), len(gradient), SEGMENT)


class BlasTrainingKernels(NativeTrainingKernels):
    """The C kernels with NumPy's BLAS for products: quicker, other bits on each board."""

    is_exact = False

    def multiply(self, a: F32, b: F32, out: F32, *, accumulate: bool = False) -> None:
        """See `TrainingKernels`."""
        if accumulate:
            out += a @ b
        else:
            np.matmul(a, b, out=out)
