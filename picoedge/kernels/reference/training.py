"""The training operations in NumPy: they run anywhere, and agree with the C kernels to rounding.

AdamW has the very bits of the C kernels, which do without fused multiply-adds there.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from picoedge.kernels.arrays import F32, F64, I32
from picoedge.kernels.stacked import StackedWeights
from picoedge.kernels.training import SEGMENT, AdamStep, Attention
from picoedge.kernels.training_abi import QUERIES

_SPAN = 1 << 14  # values of each array at a time, which stay in the cache
_LEAST = np.float32(-1e30)  # the score of a key that is not seen


class NumpyTrainingKernels:
    """`kernels.training.TrainingKernels`."""

    name = "numpy"
    is_exact = False

    def multiply(self, a: F32, b: F32, out: F32, *, accumulate: bool = False) -> None:
        """See `TrainingKernels`."""
        if accumulate:
            out += a @ b
        else:
            np.matmul(a, b, out=out)

    def multiply_stacked(
        self, a: F32, matrix: StackedWeights, out: F32, *, back: bool = False
    ) -> None:
        """See `TrainingKernels`."""
        out.fill(0)
        for rows, cols, values in matrix.dense_shards():
            if back:
                out[:, cols] += a[:, rows] @ values
            else:
                out[:, rows] += a[:, cols] @ values.T

    def norm(self, x: F32, gain: F32, out: F32, scale: F32, eps: float) -> None:
        """See `TrainingKernels`."""
        squares = np.einsum("ij,ij->i", x, x) / np.float32(x.shape[1])
        np.divide(1, np.sqrt(squares + np.float32(eps)), out=scale)
        np.multiply(x, scale[:, None], out=out)
        out *= gain

    def norm_vjp(self, x: F32, gain: F32, scale: F32, dy: F32, dx: F32, dgain: F32 | None) -> None:
        """See `TrainingKernels`."""
        unit = x * scale[:, None]
        if dgain is not None:
            dgain += np.einsum("ij,ij->j", dy, unit)
        inner = dy * gain
        unit *= (np.einsum("ij,ij->i", inner, unit) / np.float32(x.shape[1]))[:, None]
        inner -= unit
        inner *= scale[:, None]
        dx += inner

    def rotate(
        self, x: F32, rope: tuple[F32, F32], heads: int, head_dim: int, *, back: bool = False
    ) -> None:
        """See `TrainingKernels`."""
        cos, sin = (table[:, None, :] for table in rope)
        if back:
            sin = -sin
        shape = (len(x) // len(cos), len(cos), heads, 2, head_dim // 2)
        halves = x[:, : heads * head_dim].reshape(shape)
        for a, b in zip(halves[..., 0, :], halves[..., 1, :], strict=True):  # a sequence each
            turned = a * cos
            turned -= b * sin
            b *= cos
            b += a * sin
            a[...] = turned

    def attention(self, op: Attention) -> None:
        """See `TrainingKernels`."""
        q, k, v = _heads(op, op.qkv)
        out, tops, scales = _grouped(op, op.out), _rows_of(op, op.tops), _rows_of(op, op.scales)
        for rows, seen in _blocks(op):
            scores = _scores(op, q[:, :, rows], k[:, :, seen], rows, seen)
            top = scores.max(axis=-1)
            scores -= top[..., None]
            np.exp(scores, out=scores)
            by = 1 / scores.sum(axis=-1)
            np.multiply(scores @ v[:, :, seen], by[..., None], out=out[:, :, rows])
            tops[..., rows], scales[..., rows] = top, by

    def attention_vjp(self, op: Attention, d_out: F32, dqkv: F32) -> None:
        """See `TrainingKernels`.

        The sum of weights times their gradients is that of outputs times theirs (Dao et al. 2022).
        """
        (q, k, v), (dq, dk, dv) = _heads(op, op.qkv), _heads(op, dqkv)
        out, d = _grouped(op, op.out), _grouped(op, d_out)
        tops, scales = _rows_of(op, op.tops), _rows_of(op, op.scales)
        scale = np.float32(op.shape.scale)
        dk[...] = 0
        dv[...] = 0
        for rows, seen in _blocks(op):
            own = d[:, :, rows]
            weights = _scores(op, q[:, :, rows], k[:, :, seen], rows, seen)
            weights -= tops[..., rows, None]
            np.exp(weights, out=weights)
            weights *= scales[..., rows, None]
            inner = own @ v[:, :, seen].swapaxes(-1, -2)
            inner -= np.einsum("gijk,gijk->gij", own, out[:, :, rows])[..., None]
            inner *= weights
            inner *= scale
            np.matmul(inner, k[:, :, seen], out=dq[:, :, rows])
            for into, turned, right in ((dk, inner, q[:, :, rows]), (dv, weights, own)):
                parts = turned.swapaxes(-1, -2) @ right  # [kv heads, group, keys, head_dim]
                into[:, :, seen] += parts.sum(axis=1, keepdims=True) if len(parts[0]) > 1 else parts

    def gated(self, gate_up: F32, out: F32, activation: str) -> None:
        """See `TrainingKernels`."""
        for rows in _spans(gate_up):
            gate, up = np.split(gate_up[rows], 2, axis=1)
            product = _sigmoid(gate, activation)
            product *= gate
            np.multiply(product, up, out=out[rows])

    def gated_vjp(self, gate_up: F32, d: F32, activation: str) -> None:
        """See `TrainingKernels`."""
        for rows in _spans(gate_up):
            gate, up = np.split(gate_up[rows], 2, axis=1)
            sigmoid = _sigmoid(gate, activation)
            inner = 1 - sigmoid
            inner *= gate
            if activation == "gelu_tanh":
                inner *= _GELU * (1 + 3 * _CUBE * gate * gate)
            inner += 1
            inner *= sigmoid
            inner *= up
            sigmoid *= gate
            np.multiply(d[rows], sigmoid, out=up)
            np.multiply(d[rows], inner, out=gate)

    def cross_entropy(self, logits: F32, targets: I32, losses: F64, weight: float) -> None:
        """See `TrainingKernels`."""
        for rows in _spans(logits):
            _entropy(logits[rows], targets[rows], losses[rows], np.float32(weight))

    def add_rows(self, dx: F32, tokens: I32, table: F32) -> None:
        """See `TrainingKernels`."""
        np.add.at(table, tokens, dx)

    def adamw(self, step: AdamStep, weights: F32, m: F32, v: F32, gradient: F32) -> None:
        """See `TrainingKernels`."""
        numbers = [np.float32(number) for number in vars(step).values()]
        scale, beta1, rest1, beta2, rest2, decay, rate, correction, epsilon = numbers
        for start in range(0, len(weights), _SPAN):
            part = slice(start, start + _SPAN)
            own, first, second = weights[part], m[part], v[part]
            g = gradient[part] * scale
            first *= beta1
            first += g * rest1
            g *= g
            g *= rest2
            second *= beta2
            second += g
            np.sqrt(second, out=g)
            g *= correction
            g += epsilon
            np.divide(first, g, out=g)
            g *= rate
            own *= decay
            own -= g

    def squares(self, gradient: F32, sums: F64) -> None:
        """See `TrainingKernels`."""
        for i in range(len(sums)):
            part = gradient[i * SEGMENT : (i + 1) * SEGMENT].astype(np.float64)
            sums[i] = np.dot(part, part)


_GELU, _CUBE = np.float32(1.5957691216057308), np.float32(0.044715)


def _spans(values: F32) -> Iterator[slice]:
    """Rows that stay in the cache while several passes go over them."""
    count = max(1, 2 * _SPAN // max(1, values.shape[1]))
    for start in range(0, len(values), count):
        yield slice(start, start + count)


def _entropy(logits: F32, targets: I32, losses: F64, weight: np.float32) -> None:
    rows = np.flatnonzero(targets >= 0)
    top = logits.max(axis=1)
    losses[:] = 0
    losses[rows] = top[rows] - logits[rows, targets[rows]].astype(np.float64)
    logits -= top[:, None]
    np.exp(logits, out=logits)
    total = logits.sum(axis=1)
    losses[rows] += np.log(total[rows].astype(np.float64))
    logits *= (weight / total)[:, None]
    logits[rows, targets[rows]] -= weight
    logits[targets < 0] = 0


def _sigmoid(gate: F32, activation: str) -> F32:
    """silu(x) = x sigmoid(x); the tanh form of gelu is x sigmoid(2 sqrt(2 / pi) (x + c x^3))."""
    z: F32 = gate if activation == "silu" else gate * _GELU * (1 + _CUBE * gate * gate)
    out = np.negative(z)
    with np.errstate(over="ignore"):  # of infinity the result is 0, as it should be
        np.exp(out, out=out)
    out += 1
    return np.divide(1, out, out=out)


def _grouped(op: Attention, rows: F32) -> F32:
    """A view [kv heads, group, T, head_dim] of the outputs of heads."""
    shape = op.shape
    return rows.reshape(len(rows), shape.kv_heads, -1, shape.head_dim).transpose(1, 2, 0, 3)


def _rows_of(op: Attention, values: F32) -> F32:
    """A view [kv heads, group, T] of one value a query and head."""
    return values.reshape(op.shape.kv_heads, -1, values.shape[1])


def _heads(op: Attention, qkv: F32) -> tuple[F32, F32, F32]:
    """Views of q [kv heads, group, T, head_dim], and of k and v [kv heads, 1, T, head_dim]."""
    shape = op.shape
    heads = qkv.reshape(len(qkv), -1, shape.head_dim).swapaxes(0, 1)
    q, k, v = np.split(heads, (shape.q_heads, shape.q_heads + shape.kv_heads))
    grouped = q.reshape(shape.kv_heads, -1, len(qkv), shape.head_dim)
    return grouped, k[:, None], v[:, None]


def _blocks(op: Attention) -> list[tuple[slice, slice]]:
    """Rows of queries, and the keys that any of them sees."""
    length, window = len(op.qkv), op.shape.window
    starts = range(0, length, QUERIES)
    ends = [*islice(starts, 1, None), length]
    return [
        (slice(start, end), slice(max(0, start - window + 1) if window else 0, end))
        for start, end in zip(starts, ends, strict=True)
    ]


def _scores(op: Attention, q: F32, k: F32, rows: slice, seen: slice) -> F32:
    """Scaled scores [kv heads, group, rows, keys]; what is not seen has the least one."""
    scores: F32 = np.matmul(q * np.float32(op.shape.scale), k.swapaxes(-1, -2), dtype=np.float32)
    start = seen.start if op.shape.window else rows.start  # before it, all is seen
    query, key = np.arange(rows.start, rows.stop)[:, None], np.arange(start, seen.stop)
    hidden = key > query
    if op.shape.window:
        hidden |= key <= query - op.shape.window
    np.copyto(scores[..., start - seen.start :], _LEAST, where=hidden)
    return scores
