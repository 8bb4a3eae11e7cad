"""From "everything is well" to an answer over all boards again. Pure: the time comes with calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Strength:
    """Since when all is well, and how long it then took; None: not over all boards yet."""

    well_s: float = float("-inf")
    took_s: float | None = None

    def well(self, now_s: float) -> None:
        """What happened is over, as far as it is anybody's to mend."""
        self.well_s, self.took_s = now_s, None

    def answered(self, asked_s: float, now_s: float, *, by_all: bool) -> None:
        """An answer came. One to a question of before tells of what was then."""
        if by_all and asked_s >= self.well_s and self.took_s is None:
            self.took_s = now_s - self.well_s
