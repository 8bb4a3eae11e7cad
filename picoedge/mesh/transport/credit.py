"""Flow control of notifications that the next one of their kind replaces: reports, queue places.

A client that acknowledges them is sent one of each kind at a time. While it does not read, as a
hub at its prompt, the newest waits here and replaces the one before: no queue fills, and an
idle client costs no messages. A client of an earlier version acknowledges nothing. What it may
have left unread is bounded by ever longer pauses, which start anew with each of its requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# After t seconds the pause is t / 16: 32 notifications in 4 seconds, 190 in a day. The smallest
# queue of an earlier version's client holds 256.
PAUSES = 16
FIRST_PAUSE_S = 0.25  # a daemon has a report every quarter of a second


@dataclass
class PushCredit:
    """Of one connection; time is given in seconds, from any beginning.

    Each method returns the bodies to send now, by their kinds, at most one.
    """

    acknowledges: bool
    heard_s: float  # when its last request came
    _newest: dict[str, dict[str, Any]] = field(default_factory=dict)  # not sent yet
    _unread: set[str] = field(default_factory=set)  # kinds sent and not acknowledged
    _next_s: dict[str, float] = field(default_factory=dict)  # by kind, without acknowledgements

    def offer(self, kind: str, body: dict[str, Any], now_s: float) -> dict[str, Any] | None:
        """The body, if it may be sent now; else it is kept, in place of the last one."""
        if not self.acknowledges:
            return self._paced(kind, body, now_s)
        if kind in self._unread:
            self._newest[kind] = body
            return None
        self._unread.add(kind)
        return body

    def acknowledged(self, kind: str) -> dict[str, Any] | None:
        """The client has read the last one: the newest body, if one was kept."""
        self._unread.discard(kind)
        body = self._newest.pop(kind, None)
        if body is not None:
            self._unread.add(kind)
        return body

    def heard(self, now_s: float) -> None:
        """A request came: the client has read, or will read, what was sent before its reply."""
        self.heard_s = now_s
        self._next_s.clear()

    def _paced(self, kind: str, body: dict[str, Any], now_s: float) -> dict[str, Any] | None:
        if now_s < self._next_s.get(kind, now_s):
            return None
        pause_s = max(FIRST_PAUSE_S, (now_s - self.heard_s) / PAUSES)
        # A report that is a little early is not to wait for the one after it.
        self._next_s[kind] = now_s + pause_s * 0.9
        return body
