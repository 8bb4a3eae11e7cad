"""Detect boards that compute far slower than planned, and boards that have recovered. Pure.

A throttled or busy board is alive, but its assignment is wrong: the shards are redistributed
according to its present speed. Once it computes as fast as before it gets its shards back. If it
has shards, its own compute times tell; if it has none, it is tried again after a while.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from picoedge.jobs.progress_page import Work

SAMPLE_TOKENS = 8  # per sample: a second or so, and enough to average out single stalls
SLOWDOWN = 2.5  # times the best seconds per token: for less, reloading shards does not pay
CONFIRMATIONS = 2  # samples in a row that must agree: a busy moment is only one
RECOVERED = 0.6  # of its usual speed, from which on a slow board gets all its shards back
MAX_RELAPSES = 10  # counted per board: confirmations and rests then double no further
REST_S = 60.0  # until an excluded slow board is tried again


@dataclass(frozen=True)
class Sample:
    """Some decoded tokens: seconds in all, and seconds that each rank was waited for."""

    tokens: int
    seconds: float
    late_s: Mapping[int, float]

    @property
    def s_per_token(self) -> float:
        """Seconds per token."""
        return self.seconds / self.tokens


class StragglerDetector:
    """Compares seconds per token with the best seen under the same plan."""

    def __init__(self) -> None:
        self._best_s, self._slow_samples = float("inf"), 0

    def add(self, sample: Sample, planned_s: Sequence[float]) -> dict[int, float]:
        """The rank that has become slow and its speed factor, or nothing.

        `planned_s`: seconds that each rank's plan allows for computing a token, by rank.
        """
        if sample.s_per_token <= SLOWDOWN * self._best_s:
            self._best_s, self._slow_samples = min(self._best_s, sample.s_per_token), 0
            return {}
        self._slow_samples += 1
        if self._slow_samples < CONFIRMATIONS:
            return {}
        late = max(sample.late_s, key=lambda rank: sample.late_s[rank], default=None)
        if late is None or sample.late_s[late] < sample.seconds / 2:
            late = 0  # the hub waits for no rank: it is the slow one itself
        return {late: max(0.01, min(1.0, planned_s[late] / sample.s_per_token))}


class ComputeTimes:
    """Seconds that boards spent computing, from their workers' reports."""

    def __init__(self) -> None:
        self._last: dict[str, Work] = {}

    def reset(self) -> None:
        """Forget all reports, after a prompt: its tokens are faster than decoded ones."""
        self._last.clear()

    def s_per_token(self, key: str, work: Work) -> float | None:
        """Seconds of computing per token since the last call; None if no new token is known."""
        last = self._last.get(key)
        if last is None or work.tokens < last.tokens:
            self._last[key] = work
            return None
        tokens, seconds = work.tokens - last.tokens, work.compute_s - last.compute_s
        if not tokens or seconds <= 0:
            return None
        self._last[key] = work
        return seconds / tokens


@dataclass
class _Straggler:
    """A board that was slow `times` times. `factor` is 1 while it is trusted to be fast."""

    factor: float
    times: int
    retry_s: float  # when it is tried again if it is excluded
    contrary: int = 0  # samples in a row that contradict `factor`


class SpeedFactors:
    """Fractions of their measured speeds at which boards are planned, by key; 1 if never slow.

    A board that becomes slow again must be fast for twice as long each time until it is trusted,
    so that assignments do not oscillate.
    """

    def __init__(self) -> None:
        self._stragglers: dict[str, _Straggler] = {}
        self._last: dict[str, float] = {}
        self._usual: dict[str, float] = {}

    def factor(self, key: str) -> float:
        """The fraction of its measured speed that a board is planned with."""
        return self._stragglers[key].factor if key in self._stragglers else 1.0

    def slow_down(self, key: str, factor: float, now_s: float) -> None:
        """Record that a board has become slow."""
        known = self._stragglers.get(key)
        # A further slowdown of a slow board is no relapse.
        times = min(known.times + (known.factor == 1.0), MAX_RELAPSES) if known else 1
        if not self._usual.get(key):  # never seen to be fast: take the others' usual rate
            self._usual[key] = max(self._usual.values(), default=0.0) or 1.0
        self._stragglers[key] = _Straggler(factor, times, now_s + REST_S * 2 ** (times - 1))

    def add(self, rates: Mapping[str, float]) -> tuple[list[str], dict[str, float]]:
        """Boards that have recovered; and factors of boards that were trusted but are slow.

        `rates`: a board's planned seconds per token, by the seconds it took. Its usual rate is the
        best that two samples in a row have reached.
        """
        recovered, slow = [], {}
        for key, rate in rates.items():
            twice, self._last[key] = min(rate, self._last.get(key, 0.0)), rate
            self._usual[key] = max(twice, self._usual.get(key, 0.0))
            board = self._stragglers.get(key)
            if board is None:
                continue
            is_slow, speed = board.factor < 1, rate / self._usual[key]
            contradicts = speed >= RECOVERED if is_slow else speed < 1 / SLOWDOWN
            board.contrary = board.contrary + 1 if contradicts else 0
            if is_slow and board.contrary >= CONFIRMATIONS * 2 ** (board.times - 1):
                board.factor, board.contrary = 1.0, 0
                recovered.append(key)
            elif not is_slow and board.contrary >= CONFIRMATIONS:
                slow[key] = speed
        return recovered, slow

    def retry(self, included: Collection[str], now_s: float) -> list[str]:
        """Excluded slow boards that have rested long enough; they are trusted from now on."""
        due = [
            key
            for key, board in self._stragglers.items()
            if board.factor < 1 and key not in included and board.retry_s <= now_s
        ]
        for key in due:
            self._stragglers[key].factor = 1.0
        return due
