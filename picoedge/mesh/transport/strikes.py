"""Rations of a key: some malformed messages, and so many bytes.

Strikes are counted for a while: a bug of one night is not held for ever. A ration is a burst that
grows again with time.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

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


class Ration(Generic[K]):
    """Of each peer, `burst_bytes` and then so many bytes a second as `over` is told."""

    def __init__(self, burst_bytes: int) -> None:
        self._burst_bytes = burst_bytes
        self._left: dict[K, float] = {}  # where it is less than a whole burst
        self._counted_s = 0.0

    def over(self, received: Mapping[K, tuple[int, int]], now_s: float) -> set[K]:
        """Peers that sent more than their ration.

        `received`: bytes since the last call, and bytes a second allowed. A call that comes late
        allows for the delay.
        """
        passed_s, self._counted_s = now_s - self._counted_s, now_s
        before, self._left = self._left, {}
        for peer, (nbytes, rate) in received.items():
            burst = max(self._burst_bytes, rate * passed_s)
            left = min(burst, before.get(peer, burst) + rate * passed_s) - nbytes
            if left < burst:
                self._left[peer] = left
        return {peer for peer, left in self._left.items() if left < 0}
