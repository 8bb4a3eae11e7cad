"""The daemon's log: rate-limited for each kind of line, and never silent for good.

    journal.say("dropped b2: not JSON", "dropped b2")

Of each kind AT_ONCE different lines an hour are written at once. The others are counted, and the
hour ends with one line of how many they were and what the last one said. What one board brings
about cannot fill a card, nor hide what others say. A line that cannot be written is counted, too.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from picoedge.sanitize import one_line

HOUR_S = 3600.0  # for which lines are counted
AT_ONCE = 3  # a thing that happens twice has happened; more of it is a number
MOST_KINDS = 256  # whose counts are kept: the oldest makes room, and says its own
MOST_LINES = 400  # an hour, of all kinds: 1 MB a day
MOST_CHARACTERS = 500  # of a line: what is longer was made long by a stranger
_NUMBER = re.compile(r"\d+")


@dataclass
class _Kind:
    since_s: float
    last: str = ""
    written: int = 0
    left_out: int = 0


class Journal:
    """Gives `write` lines for people. `clock` is in seconds and monotonic."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._write, self._clock = write, clock
        self._kinds: dict[str, _Kind] = {}  # the oldest first
        self._hour_s, self._lines, self._over = clock(), 0, 0

    def say(self, line: str, about: str = "") -> bool:
        """Write a line now, or count it; whether it was written.

        `about` names its kind: needed where the line repeats words of others. Without it, lines
        that differ in numbers alone are of one kind.
        """
        self.look()
        line = one_line(line, MOST_CHARACTERS)
        name = about or _NUMBER.sub("#", line)
        kind = self._kinds.get(name)
        if kind is None:
            if len(self._kinds) >= MOST_KINDS:
                self._end(next(iter(self._kinds)))
            kind = self._kinds[name] = _Kind(self._clock())
        is_new = line != kind.last and kind.written < AT_ONCE
        kind.last = line
        if is_new and self._put(line):
            kind.written += 1
            return True
        kind.left_out += 1
        return False

    def fault(self, line: str, about: str = "") -> None:
        """As `say`, of a fault of ours; in an `except` block, whose traceback follows the line."""
        if self.say(line, about):
            with suppress(OSError, ValueError):
                traceback.print_exc()

    def fault_of(self, error: Exception) -> None:
        """As `fault`, of a timer or a socket's call: the sessions of all boards go on."""
        what = "a fault in this service"
        self.fault(f"{what}: {type(error).__name__}: {error}", what)

    def look(self) -> None:
        """End the hours that are over; to be called now and then."""
        now_s = self._clock()
        if now_s - self._hour_s >= HOUR_S:
            self._hour_s, self._lines, over, self._over = now_s, 0, self._over, 0
            if over and not self._put(f"… {over} other lines were left out in the last hour"):
                self._over += over
        for name, kind in list(self._kinds.items()):
            if now_s - kind.since_s < HOUR_S:
                return  # those behind it are younger
            self._end(name)

    def _end(self, name: str) -> None:
        kind = self._kinds.pop(name)
        line = f"… {kind.left_out} more like this in the last hour: {kind.last}"
        if kind.left_out and not self._put(line):
            self._over += kind.left_out

    def _put(self, line: str) -> bool:
        if self._lines >= MOST_LINES:
            self._over += 1
            return False
        self._lines += 1
        try:
            self._write(line)
        except (OSError, ValueError):  # its card is full or gone, or what it was piped to has ended
            self._over += 1
            return False
        return True
