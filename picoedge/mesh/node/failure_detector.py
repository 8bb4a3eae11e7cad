"""Failure detector: the membership over time, by heartbeats and their absence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from picoedge.mesh.node.membership import DEAD_AFTER_S, Change, MemberEvent, Membership, Tick, apply


@dataclass(frozen=True)
class Timing:
    """Seconds between heartbeats, of silence until a board is dead, and between searches."""

    beat_s: float = 0.25
    silence_s: float = DEAD_AFTER_S
    seek_s: float = 1.0


class FailureDetector:
    """Applies events to `membership` at the time of `clock` (seconds, monotonic)."""

    def __init__(self, clock: Callable[[], float], timing: Timing) -> None:
        self.membership = Membership()
        self._clock = clock
        self._timing = timing
        self._checked_s = clock()
        self._on_change: list[Callable[[Change], None]] = []

    def on_change(self, call: Callable[[Change], None]) -> None:
        """Have `call` called with each change of the membership."""
        self._on_change.append(call)

    def apply(self, event: MemberEvent) -> None:
        """Apply an event now."""
        silence_s = self._timing.silence_s
        self.membership, changes = apply(self.membership, event, self._clock(), silence_s)
        for change in changes:
            for call in self._on_change:
                call(change)

    def check_timeouts(self) -> None:
        """Mark silent boards as dead; to be called once per heartbeat interval."""
        now_s, before_s = self._clock(), self._checked_s
        self._checked_s = now_s
        # If this process was itself stopped, it has read nothing: the silence was its own.
        if now_s - before_s < self._timing.beat_s + self._timing.silence_s / 2:
            self.apply(Tick())
