"""The training operations in NumPy: they run anywhere, and agree with the C kernels to rounding.

AdamW has the very bits of the C kernels, which do without fused multiply-adds there.
"""

from __future__ import annotations

from itertools import islice

import numpy as np

from picoedge.kernels.arrays import F32, F64, I32
from picoedge.kernels.stacked import StackedWeights
from picoedge.kernels.training import QUERIES, SEGMENT, AdamStep, Attention

_SPAN = 1 << 16  # values of the optimizer at a time, which stay in the cache
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
        halves = x[:, : heads * head_dim].reshape(shape) if len(x) else x[:0].reshape(0, *shape[1:])
        a, b = halves[..., 0, :], halves[..., 1, :]
        rotated = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-2)
        x[:, : heads * head_dim] = rotated.reshape(len(x), -1)

    def attention(self, op: Attention) -> None:
        """See `TrainingKernels`."""
        q, k, v = _heads(op, op.qkv)
        out = op.out.reshape(len(op.out), op.shape.q_heads, op.shape.head_dim)
        group = op.shape.q_heads // op.shape.kv_heads
        for head in range(op.shape.q_heads):
            keys, values = k[:, head // group], v[:, head // group]
            for rows, seen in _blocks(op):
                scores = _scores(op, q[rows, head], keys[seen], rows, seen)
                top = scores.max(axis=1, keepdims=True)
                scores -= top
                np.exp(scores, out=scores)
                by = 1 / scores.sum(axis=1, keepdims=True)
                scores *= by
                out[rows, head] = scores @ values[seen]
                op.tops[head, rows], op.scales[head, rows] = top[:, 0], by[:, 0]

    def attention_vjp(self, op: Attention, d_out: F32, dqkv: F32) -> None:
        """See `TrainingKernels`."""
        q, k, v = _heads(op, op.qkv)
        dq, dk, dv = _heads(op, dqkv)
        d = d_out.reshape(len(d_out), op.shape.q_heads, op.shape.head_dim)
        group = op.shape.q_heads // op.shape.kv_heads
        dk[...] = 0
        dv[...] = 0
        for head in range(op.shape.q_heads):
            kv = head // group
            for rows, seen in _blocks(op):
                weights = _scores(op, q[rows, head], k[seen, kv], rows, seen)
                weights -= op.tops[head, rows, None]
                np.exp(weights, out=weights)
                weights *= op.scales[head, rows, None]
                inner = d[rows, head] @ v[seen, kv].T
                inner -= np.einsum("ij,ij->i", weights, inner)[:, None]
                inner *= weights
                inner *= np.float32(op.shape.scale)
                dq[rows, head] = inner @ k[seen, kv]
                dk[seen, kv] += inner.T @ q[rows, head]
                dv[seen, kv] += weights.T @ d[rows, head]

    def gated(self, gate_up: F32, out: F32, activation: str) -> None:
        """See `TrainingKernels`."""
        gate, up = np.split(gate_up, 2, axis=1)
        np.multiply(gate, _sigmoid(gate, activation), out=out)
        out *= up

    def gated_vjp(self, gate_up: F32, d: F32, activation: str) -> None:
        """See `TrainingKernels`."""
        gate, up = np.split(gate_up, 2, axis=1)
        sigmoid = _sigmoid(gate, activation)
        inner = 1 - sigmoid
        inner *= gate
        if activation == "gelu_tanh":
            inner *= _GELU * (1 + 3 * _CUBE * gate * gate)
        inner += 1
        inner *= sigmoid
        inner *= up
        inner *= d
        sigmoid *= gate
        np.multiply(d, sigmoid, out=up)
        gate[...] = inner

    def cross_entropy(self, logits: F32, targets: I32, losses: F64, weight: float) -> None:
        """See `TrainingKernels`."""
        rows = np.flatnonzero(targets >= 0)
        top = logits.max(axis=1)
        losses[:] = 0
        losses[rows] = top[rows] - logits[rows, targets[rows]].astype(np.float64)
        logits -= top[:, None]
        np.exp(logits, out=logits)
        total = logits.sum(axis=1)
        losses[rows] += np.log(total[rows].astype(np.float64))
        logits *= (np.float32(weight) / total)[:, None]
        logits[rows, targets[rows]] -= np.float32(weight)
        logits[targets < 0] = 0

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


def _sigmoid(gate: F32, activation: str) -> F32:
    """silu(x) = x sigmoid(x); the tanh form of gelu is x sigmoid(2 sqrt(2 / pi) (x + c x^3))."""
    z = gate if activation == "silu" else gate * _GELU * (1 + _CUBE * gate * gate)
    out = np.maximum(np.negative(z), np.float32(-87))
    np.minimum(out, np.float32(88), out=out)
    np.exp(out, out=out)
    out += 1
    np.divide(1, out, out=out)
    return out


def _heads(op: Attention, qkv: F32) -> tuple[F32, F32, F32]:
    """Views [T, heads, head_dim] of q, k and v."""
    shape = op.shape
    heads = qkv.reshape(len(qkv), -1, shape.head_dim)
    q_heads, kv_heads = shape.q_heads, shape.kv_heads
    return (
        heads[:, :q_heads],
        heads[:, q_heads : q_heads + kv_heads],
        heads[:, q_heads + kv_heads :],
    )


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
    scores = q @ k.T
    scores *= np.float32(op.shape.scale)
    query, key = np.arange(rows.start, rows.stop)[:, None], np.arange(seen.start, seen.stop)
    hidden = key > query
    if op.shape.window:
        hidden |= key <= query - op.shape.window
    scores[hidden] = _LEAST
    return scores
