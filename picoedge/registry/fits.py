"""Fit of a model to a memory: whole, or streamed from the disk, or not at all. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from picoedge.units import MB

WHOLE, STREAMED, NOT = "in memory", "streamed", "too large"
# Of a model whose shape was not looked at: interpreter, tokenizer, a cache of 4096, and buffers.
_BESIDE_BYTES, _LEAST_BYTES = 350 * MB, 120 * MB
_LEAST_SHARE = 20  # a window is at least a few of the largest units
_BOARD_BYTES = 80 * MB  # of each board of a cluster: its process and buffers


@dataclass(frozen=True)
class MemoryOfModel:
    """Memory a model takes whole, and the least with which its weights are streamed.

    `is_estimated`: from its shape or size; else `whole` was measured.
    """

    whole: int
    least: int
    is_estimated: bool = False

    @classmethod
    def of_pack(cls, n_bytes: int) -> MemoryOfModel:
        """An estimate from the size of a pack alone."""
        return cls(n_bytes + _BESIDE_BYTES, _LEAST_BYTES + n_bytes // _LEAST_SHARE, True)

    def on_board(self, available: int) -> str:
        """The way it would run with this much memory."""
        if available >= self.whole:
            return WHOLE
        return STREAMED if available >= self.least else NOT

    def over_boards(self, budgets: Iterable[int]) -> str:
        """The way it would run over boards with these budgets, the weights divided among them."""
        rooms = [max(0, budget - _BOARD_BYTES) for budget in budgets]
        if sum(rooms) + _BOARD_BYTES >= self.whole:
            return WHOLE
        return STREAMED if any(room + _BOARD_BYTES >= self.least for room in rooms) else NOT
