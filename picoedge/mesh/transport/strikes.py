"""Malformed messages of each key, counted for a while: a bug of one night is not held for ever."""

from __future__ import annotations

FADED_S = 600.0  # since the last one of a key


class Strikes:
    """`add` and `forget` are given the time, in seconds from any beginning."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, float]] = {}  # and when the last one was; oldest first

    def add(self, key: str, now_s: float) -> int:
        """Count one more of a key; how many there are now."""
        self.forget(now_s)
        count = self._counts.pop(key, (0, now_s))[0] + 1
        self._counts[key] = count, now_s
        return count

    def forget(self, now_s: float) -> None:
        """Forget keys that have been well for FADED_S."""
        while self._counts:
            key, (_, last_s) = next(iter(self._counts.items()))
            if now_s - last_s < FADED_S:
                return
            del self._counts[key]
