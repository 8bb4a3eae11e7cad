"""Whether a session keeps the pace that was planned, and which board holds it up. Pure.

A board that is throttled, or that others make busy, is neither dead nor its share right: the shares
are dealt again with the speed it now has. Once it is as quick as it used to be, it gets its share
back: by what it takes itself to compute, where it still has some; else it is tried again later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from picoedge.jobs.progress_page import Work

TOKENS = 8  # between two looks
FAR_SLOWER = 2.5  # than it was, per token, that is worth another plan
LOOKS = 2  # in a row that must find it so: a busy moment is none
QUICK = 0.6  # of its usual speed, at which a slow board has all of its share again
MOST_TIMES = 10  # that are counted: what is then waited for doubles no more
REST_S = 60.0  # until one that takes no part is tried again


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


class OwnTimes:
    """What boards took themselves to compute, from what their workers report."""

    def __init__(self) -> None:
        self._from: dict[str, Work] = {}

    def begin(self) -> None:
        """Forget what was reported: tokens of a prompt are quicker than others."""
        self._from.clear()

    def s_per_token(self, key: str, work: Work) -> float | None:
        """Seconds of computing a token since the last call; None where nothing new is known."""
        since = self._from.get(key)
        if since is None or work.tokens < since.tokens:
            self._from[key] = work
            return None
        tokens, seconds = work.tokens - since.tokens, work.compute_s - since.compute_s
        if not tokens or seconds <= 0:
            return None
        self._from[key] = work
        return seconds / tokens


@dataclass
class _Slow:
    """A board that has become slow `times` times; `left` is 1 while it is believed to be quick."""

    left: float
    times: int
    due_s: float  # when it is tried again, if it takes no part
    looks: int = 0  # in a row that found it otherwise


class Speeds:
    """What slow boards of a session have left of their measured speeds, by their keys.

    A board that becomes slow again and again must be quick for twice as long each time before it
    is believed, so that shares do not swing.
    """

    def __init__(self) -> None:
        self._slow: dict[str, _Slow] = {}
        self._last: dict[str, float] = {}
        self._usual: dict[str, float] = {}

    def left(self, key: str) -> float:
        """The part of its measured speed that a board is planned with."""
        return self._slow[key].left if key in self._slow else 1.0

    def slowed(self, key: str, left: float, now_s: float) -> None:
        """A board has become slow."""
        known = self._slow.get(key)
        # Slower still is not slow again.
        times = min(known.times + (known.left == 1.0), MOST_TIMES) if known else 1
        if not self._usual.get(key):  # it was never seen to be quick: as the others are
            self._usual[key] = max(self._usual.values(), default=0.0) or 1.0
        self._slow[key] = _Slow(left, times, now_s + REST_S * 2 ** (times - 1))

    def look(self, rates: Mapping[str, float]) -> tuple[list[str], dict[str, float]]:
        """Slow boards that are quick again; and what is left of those that were believed in vain.

        `rates`: what a board's share should take, as measured, by what it took. What is usual for
        a board is the best of its rates, found in two looks.
        """
        quick, slow = [], {}
        for key, rate in rates.items():
            twice, self._last[key] = min(rate, self._last.get(key, 0.0)), rate
            self._usual[key] = max(twice, self._usual.get(key, 0.0))
            board = self._slow.get(key)
            if board is None:
                continue
            is_slow, now = board.left < 1, rate / self._usual[key]
            board.looks = board.looks + 1 if self._is_otherwise(is_slow, now) else 0
            if is_slow and board.looks >= LOOKS * 2 ** (board.times - 1):
                board.left, board.looks = 1.0, 0
                quick.append(key)
            elif not is_slow and board.looks >= LOOKS:
                slow[key] = now
        return quick, slow

    @staticmethod
    def _is_otherwise(is_slow: bool, now: float) -> bool:
        return now >= QUICK if is_slow else now < 1 / FAR_SLOWER

    def to_try(self, taking: Collection[str], now_s: float) -> list[str]:
        """Slow boards that take no part and have rested; from now on they are believed."""
        due = [
            key
            for key, board in self._slow.items()
            if board.left < 1 and key not in taking and board.due_s <= now_s
        ]
        for key in due:
            self._slow[key].left = 1.0
        return due
