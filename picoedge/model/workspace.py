"""The buffers that a chunk of tokens passes through."""

from __future__ import annotations

import numpy as np

from picoedge.kernels.arrays import F32


class Workspace:
    """Activations of one chunk of tokens, shared by all layers and by the runs of one layer.

    `qkv`, `attention` and `ffn` are the widths of the widest run.
    """

    def __init__(self, batch: int, hidden: int, qkv: int, attention: int, ffn: int) -> None:
        self.x = np.zeros((batch, hidden), np.float32)  # residual stream
        self.sums = np.zeros((batch, hidden), np.float64)  # of the last sublayer, not yet in x
        self._qkv = np.zeros(batch * qkv, np.float32)
        self._attention = np.zeros(batch * attention, np.float32)
        self._gate_up = np.zeros(batch * 2 * ffn, np.float32)

    def qkv(self, width: int) -> F32:
        """Queries, keys and values of a run, [N, width]."""
        return _rows(self._qkv, len(self.x), width)

    def attention(self, width: int) -> F32:
        """What a run's heads attended to, [N, width]."""
        return _rows(self._attention, len(self.x), width)

    def gate_up(self, width: int) -> F32:
        """A run's gate beside its up, [N, 2 * width]."""
        return _rows(self._gate_up, len(self.x), 2 * width)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        arrays = (self.x, self.sums, self._qkv, self._attention, self._gate_up)
        return sum(a.nbytes for a in arrays)


def _rows(buffer: F32, count: int, width: int) -> F32:
    return buffer[: count * width].reshape(count, width)
