"""The membership as it changes, and those who are told of each change."""

from __future__ import annotations

from collections.abc import Callable

from picoedge.mesh.node.membership import Change, Event, Membership, Tick, apply
from picoedge.mesh.node.timing import Timing


class Attendance:
    """Applies events at the time of `clock`, in seconds."""

    def __init__(self, clock: Callable[[], float], timing: Timing) -> None:
        self.membership = Membership()
        self._clock = clock
        self._timing = timing
        self._listened_s = clock()
        self._on_change: list[Callable[[Change], None]] = []

    def on_change(self, call: Callable[[Change], None]) -> None:
        """Be told of each change of the membership."""
        self._on_change.append(call)

    def apply(self, event: Event) -> None:
        """Take in what happened, now."""
        silence_s = self._timing.silence_s
        self.membership, changes = apply(self.membership, event, self._clock(), silence_s)
        for change in changes:
            for call in self._on_change:
                call(change)

    def see_silence(self) -> None:
        """Once for each heartbeat of ours: who is silent too long is dead."""
        now_s, before_s = self._clock(), self._listened_s
        self._listened_s = now_s
        # Having been stopped ourselves, we have not listened: nobody was silent.
        if now_s - before_s < self._timing.beat_s + self._timing.silence_s / 2:
            self.apply(Tick())
