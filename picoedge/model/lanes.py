"""Two-batch overlap (one half computes while the other's sums travel).

A long chunk of tokens has two lanes: while the sums of one are on the network, the other is
computed.
"""

from __future__ import annotations

from collections.abc import Callable

from picoedge.kernels.arrays import F64

_Finish = Callable[[], None]
# Starts adding up sums f64 [n, hidden] over all slices, in place; the function it returns, if any,
# waits until they are complete.
Reduce = Callable[[F64], _Finish | None]

LANES_FROM, LANE_STEP = 64, 16  # least tokens of a chunk with two lanes; a lane is a multiple


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
