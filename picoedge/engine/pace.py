"""Whether a session keeps the pace that was planned, and which board holds it up. Pure.

A board that is throttled, or that others make busy, is neither dead nor its share right: the shares
are dealt again with the speed it now has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TOKENS = 8  # between two looks
FAR_SLOWER = 2.5  # than it was, per token, that is worth another plan
LOOKS = 2  # in a row that must find it so: a busy moment is none


@dataclass(frozen=True)
class Look:
    """What was seen over some tokens: seconds in all, and how long each rank was waited for."""

    tokens: int
    seconds: float
    late_s: Mapping[int, float]

    @property
    def s_per_token(self) -> float:
        """Seconds a token."""
        return self.seconds / self.tokens


class Pace:
    """Compares what is seen with the best that was seen of the same plan."""

    def __init__(self) -> None:
        self._best_s, self._slow = float("inf"), 0

    def slower(self, look: Look, planned_s: Sequence[float]) -> dict[int, float]:
        """Ranks that have become slow, and the part of their planned speed that is left.

        `planned_s`: what each rank computes for a token, by rank. Empty while all is well.
        """
        if look.s_per_token <= FAR_SLOWER * self._best_s:
            self._best_s, self._slow = min(self._best_s, look.s_per_token), 0
            return {}
        self._slow += 1
        if self._slow < LOOKS:
            return {}
        late = max(look.late_s, key=lambda rank: look.late_s[rank], default=None)
        if late is None or look.late_s[late] < look.seconds / 2:
            return {0: self._left(look, planned_s[0])}  # nobody is waited for: it is this board
        return {late: self._left(look, planned_s[late])}

    @staticmethod
    def _left(look: Look, planned_s: float) -> float:
        return max(0.01, min(1.0, planned_s / look.s_per_token))
