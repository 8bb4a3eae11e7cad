"""Chunks cut in two: the sums of one half are on their way while the other is computed."""

from __future__ import annotations

from collections.abc import Callable

from picoedge.kernels.arrays import F64

Finish = Callable[[], None]
Reduce = Callable[[F64], Finish | None]  # begins; what it gives, if anything, ends

LANES_FROM, LANE_STEP = 64, 16  # tokens of a chunk that is cut in two, and what each part is of


class Lane:
    """Tokens first .. end-1 of a chunk, whose sums travel while another lane is computed.

    `position` is that of its first token.
    """

    def __init__(self, first: int, end: int, position: int) -> None:
        self.first, self.end, self.position = first, end, position
        self._finish: Finish | None = None

    @property
    def n(self) -> int:
        """Tokens."""
        return self.end - self.first

    def begin(self, reduce: Reduce, sums: F64) -> None:
        """Send what this slice adds to the lane's sums, f64 [N, hidden] of the chunk."""
        self._finish = reduce(sums[self.first : self.end])

    def finish(self) -> None:
        """Have the sums that were begun last, if any."""
        finish, self._finish = self._finish, None
        if finish is not None:
            finish()


def lanes_of(n: int, position: int, *, tied: bool) -> list[Lane]:
    """A long chunk of a slice that is tied to others in two lanes, else in one.

    The same on all boards, as each sum is of one lane.
    """
    if not tied or n < LANES_FROM:
        return [Lane(0, n, position)]
    half = n // 2 // LANE_STEP * LANE_STEP
    return [Lane(0, half, position), Lane(half, n, position + half)]
