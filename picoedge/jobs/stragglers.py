"""Detect boards that compute far slower than planned, and boards that have recovered.

A throttled or busy board is alive, but its assignment is wrong: the shards are redistributed
according to its present speed. Once it computes as fast as before it gets its shards back. If it
has shards, its own compute times tell; if it has none, it is tried again after a while.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from picoedge.jobs.progress_page import Work

if TYPE_CHECKING:
    from picoedge.mesh.group.channel import SyncUsage
    from picoedge.planner.cost_model import Share

SAMPLE_TOKENS = 8  # per sample: a second or so, and enough to average out single stalls
SLOWDOWN = 2.5  # times the best seconds per token: for less, reloading shards does not pay
CONFIRMATIONS = 2  # samples in a row that must agree: a busy moment is only one
RECOVERED = 0.6  # of its usual speed, from which on a slow board gets all its shards back
MAX_RELAPSES = 4  # counted per board: confirmations and rests then double no further
REST_S = 60.0  # until an excluded slow board is tried again, the first time
# Until a board that the plan does without is measured again, the first time and at most.
LOOK_S, LONGEST_LOOK_S = 5.0, 40.0
FADE_S = 600.0  # after which one relapse is forgotten: no board is held against its past


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
    since_s: float  # when it became slow last
    contrary: int = 0  # samples in a row that contradict `factor`

    @property
    def retry_s(self) -> float:
        """Time of the next try, if it is excluded."""
        return self.since_s + REST_S * 2.0 ** (self.times - 1)

    def times_now(self, now_s: float) -> int:
        """Times it was slow, less one for each FADE_S since."""
        return max(0, self.times - int((now_s - self.since_s) / FADE_S))


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
        before = known.times_now(now_s) if known else 0
        times = max(1, min(before + (known is None or known.factor == 1.0), MAX_RELAPSES))
        if not self._usual.get(key):  # never seen to be fast: take the others' usual rate
            self._usual[key] = max(self._usual.values(), default=0.0) or 1.0
        self._stragglers[key] = _Straggler(factor, times, now_s)

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


class Looks:
    """Times to measure boards again that the plan does without, by key; the caller gives the time.

    A board that has just woken answers slowly, and a plan without it is the better one then. To
    look costs milliseconds, and each time that nothing has changed the next look comes later.
    """

    def __init__(self) -> None:
        self._next: dict[str, tuple[float, float]] = {}  # when, and how long after the last one

    def is_due(self, key: str, now_s: float) -> bool:
        """Whether to measure a board now; an unmeasured board is due at once."""
        return key not in self._next or self._next[key][0] <= now_s

    def looked(self, key: str, now_s: float) -> None:
        """A board was measured."""
        _, last_s = self._next.get(key, (0.0, LOOK_S / 2))
        wait_s = min(2 * last_s, LONGEST_LOOK_S)
        self._next[key] = now_s + wait_s, wait_s


class SharedWork(Protocol):
    """A group of boards at work on one model."""

    @property
    def shares(self) -> Sequence[Share]:
        """Each board's share of the model, the hub first."""

    @property
    def disk_wait_s(self) -> float:
        """Seconds that this board has waited for its storage."""

    def sync_usage(self) -> SyncUsage:
        """The cost of sums so far."""

    def work_since(self, time_s: float) -> Mapping[str, Work]:
        """Work done by each worker, by key, if it has reported since `time_s` (monotonic)."""


class SpeedWatch:
    """The speeds of a session's boards, over all its groups. `own` is the key of the hub's board.

    Call `begin` with each new group, `add` after each of its passes.
    """

    _detector: StragglerDetector
    _sample_s: float
    _sampled: int
    _usage: SyncUsage

    def __init__(self, own: str) -> None:
        self._own = own
        self._speeds, self._compute_times = SpeedFactors(), ComputeTimes()
        self.factor = self._speeds.factor

    def begin(self, work: SharedWork) -> None:
        """A group that has done nothing yet."""
        self._at, self._detector = work, StragglerDetector()
        # Seconds of a token at each board's measured speed, whatever its present one.
        self._full_s = {
            share.board.key: share.compute_s * self.factor(share.board.key) for share in work.shares
        }
        self._begin_answer()

    def add(self, token_s: float | None) -> tuple[str, Collection[str]] | None:
        """Seconds of a decoded token, None of a prompt; what has changed, and of which boards."""
        if len(self._at.shares) == 1:
            return None
        if token_s is None:
            self._begin_answer()
            return None
        self._sample_s, self._sampled = self._sample_s + token_s, self._sampled + 1
        if self._sampled < SAMPLE_TOKENS:
            return None
        usage, before = self._at.sync_usage(), self._usage.late_s
        waited = {rank: late_s - before.get(rank, 0.0) for rank, late_s in usage.late_s.items()}
        planned: Sequence[float] = [share.compute_s for share in self._at.shares]
        late = self._detector.add(Sample(self._sampled, self._sample_s, waited), planned)
        recovered, slow = self._speeds.add(self._rates(usage))
        slow |= {self._at.shares[rank].board.key: factor for rank, factor in late.items()}
        self._begin_sample()
        for key, factor in slow.items():
            self._speeds.slow_down(key, factor, time.monotonic())
        if not slow and not recovered:
            return None
        return ("has become slow", slow) if slow else ("is quick again", recovered)

    def rested(self) -> tuple[str, Collection[str]] | None:
        """Before an answer: boards to be included again that were excluded as slow."""
        included = {share.board.key for share in self._at.shares}
        rested = self._speeds.retry(included, time.monotonic())
        return ("was slow and is tried again", rested) if rested else None

    def accept(self) -> None:
        """No better plan exists: the present speed is normal."""
        self._detector = StragglerDetector()

    def _begin_answer(self) -> None:
        """Start sampling anew: tokens of a prompt are faster than decoded ones."""
        self._compute_times.reset()
        self._answer_s = time.monotonic()
        self._begin_sample()

    def _begin_sample(self) -> None:
        self._sample_s, self._sampled, self._disk_s = 0.0, 0, self._at.disk_wait_s
        self._usage = self._at.sync_usage()

    def _rates(self, usage: SyncUsage) -> dict[str, float]:
        """Each board's seconds per token at its measured speed, by those it took; by key."""
        own_s = self._sample_s - (usage.wait_s - self._usage.wait_s)
        own_s -= self._at.disk_wait_s - self._disk_s
        took = {self._own: own_s / self._sampled if own_s > 0 else None}
        for key, work in self._at.work_since(self._answer_s).items():
            took[key] = self._compute_times.s_per_token(key, work)
        return {
            key: full / took_s for key, full in self._full_s.items() if (took_s := took.get(key))
        }
