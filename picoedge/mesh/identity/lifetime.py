"""Lifetime of an invite, whatever the clock of its board is set to meanwhile.

Within one boot the kernel counts: a clock that steps by years, as one does that starts in 1970 and
is set from the network, changes nothing. Another boot cannot know how long the board was off. It
counts its own time against what was left, and the clock as well if that was set both times.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from picoedge.fields import Fields

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CLOCK_IS_SET = 1_735_689_600  # 2025: a clock that shows less was never set
MOST_BOOTS = 4  # an invite outlives no more restarts, however soon
MAX_TIME = (1 << 53) - 1  # seconds
_LONGEST_BEFORE_S = 86_400  # believed of an invite of an earlier version, which tells its end alone
_FIELDS = ("issued", "expires", "boot", "since", "seen", "boots")
_MAX_BOOT = 64  # characters


@dataclass(frozen=True)
class Moment:
    """A time: by the clock (unix seconds), and in seconds of the board's boot."""

    unix_s: float
    boot_s: float
    boot: str

    @classmethod
    def now(cls) -> Moment:
        """Of this board."""
        boot = ""
        with suppress(OSError):
            boot = BOOT_ID.read_text().strip()
        return cls(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot[:_MAX_BOOT])

    def after(self, seconds: float) -> Moment:
        """So much later in the same boot."""
        return Moment(self.unix_s + seconds, self.boot_s + seconds, self.boot)


@dataclass(frozen=True)
class Lifetime:
    """From `issued` to `expires` by the clock (unix seconds), which began at `since` of `boot`.

    It has been through `boots`, the last of which is `seen`.
    """

    issued: int
    expires: int
    boot: str
    since: float
    seen: str
    boots: int = 1

    @classmethod
    def of(cls, seconds: float, now: Moment, boots: int = 1) -> Lifetime:
        """So many seconds from now on."""
        begin, end = math.floor(now.unix_s), math.ceil(now.unix_s + seconds)
        return cls(begin, end, now.boot, now.boot_s, now.boot, boots)

    @classmethod
    def read(cls, value: object) -> Lifetime:
        """As `to_json` wrote it, or an earlier version: its end alone. Raises ProtocolError."""
        if type(value) is int and 0 <= value <= MAX_TIME:
            return cls(max(0, value - _LONGEST_BEFORE_S), value, "", 0.0, "")
        fields = Fields(value, "an invite").only(_FIELDS)
        return cls(
            fields.integer("issued", 0, MAX_TIME),
            fields.integer("expires", 0, MAX_TIME),
            fields.text("boot", _MAX_BOOT),
            fields.number("since", 0, MAX_TIME),
            fields.text("seen", _MAX_BOOT),
            fields.integer("boots", 1, MOST_BOOTS),
        )

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return dict(vars(self))

    def left_s(self, now: Moment) -> float:
        """Seconds until its end; none where it is over."""
        if self._is_of(now):
            return self.expires - self.issued - (now.boot_s - self.since)
        if self.boots >= MOST_BOOTS and self.seen != now.boot:
            return 0.0
        left_s = self.expires - self.issued - now.boot_s  # it is older than this boot
        return min(left_s, self.expires - now.unix_s) if self._is_told_by_clock(now) else left_s

    def in_boot(self, now: Moment) -> Lifetime:
        """The same, where the boot of `now` has seen it: counted by that one, if the clock tells
        how long the board was off."""
        if self.boot == now.boot or self.seen == now.boot:
            return self
        boots = min(self.boots + 1, MOST_BOOTS)
        if self._is_told_by_clock(now):
            return Lifetime.of(self.left_s(now), now, boots)
        return replace(self, seen=now.boot, boots=boots)

    def _is_of(self, now: Moment) -> bool:
        return self.boot == now.boot and now.boot_s >= self.since

    def _is_told_by_clock(self, now: Moment) -> bool:
        return CLOCK_IS_SET <= self.issued <= now.unix_s
