"""What the switch decides: which frame comes out of which port, and when. No clock, no device.

A frame passes the port of its sender, a link and the port of its receiver. Each may have a rate:
the frame then occupies it for its length. Like the small packets of a real network, which these
large frames stand for, it is already on the next one while it still comes in from the last.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence

from hw.lab.links import LinkShape

# Even the slowest of links has room for some frames.
MIN_QUEUE_BYTES = 1 << 18


def mac(index: int) -> bytes:
    """The hardware address of a board, by its index."""
    return b"\x02LAB" + index.to_bytes(2, "big")


class Pipe:
    """Something with a rate that frames pass one after the other."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self.queue_s = LinkShape.queue_s
        self._free_at = 0.0

    def passes(self, begin: float, end: float, n_bytes: int) -> tuple[float, float] | None:
        """When the first and the last byte come out, given when they come in; None: no room."""
        if self.rate is None:
            return begin, end
        start = max(begin, self._free_at)
        if start - begin > max(self.queue_s, MIN_QUEUE_BYTES / self.rate):
            return None
        self._free_at = max(end, start + n_bytes / self.rate)
        return start, self._free_at


class Way(Pipe):
    """A link in one direction."""

    def __init__(self, target: int, shape: LinkShape) -> None:
        super().__init__()
        self.target, self.is_cut, self._last = target, False, 0.0
        self.set(shape)

    def set(self, shape: LinkShape) -> None:
        """Behave so from the next frame on."""
        self.shape, self.rate, self.queue_s = shape, shape.rate_bytes_per_s, shape.queue_s

    def delayed(self, begin: float, end: float, uniform: float) -> tuple[float, float]:
        """The same at the far end; frames never overtake each other."""
        later = self.shape.delay_s + self.shape.jitter_s * uniform
        self._last = max(self._last, end + later)
        return min(begin + later, self._last), self._last


class Fabric:
    """Ports, the ways between them, and the frames on their way. `random` gives 0 <= x < 1."""

    def __init__(self, ports: int, shape: LinkShape, random: Callable[[], float]) -> None:
        self.counts = {"passed": 0, "lost": 0, "cut": 0, "full": 0}
        self.uplinks = [Pipe() for _ in range(ports)]
        self.downlinks = [Pipe() for _ in range(ports)]
        self._ways = [[Way(target, shape) for target in range(ports)] for _ in range(ports)]
        self._addresses = {mac(index): index for index in range(ports)}
        self._random = random
        self._flying: list[tuple[float, int, float, bool, Way, bytes]] = []
        self._number = 0

    def way(self, source: int, target: int) -> Way:
        """The link from one port to another."""
        return self._ways[source][target]

    def arrive(self, now: float, source: int, frame: bytes) -> None:
        """A frame came in at a port."""
        passed = self.uplinks[source].passes(now, now, len(frame))
        if passed is None:
            self.counts["full"] += 1
            return
        for way in self._targets(source, frame):
            self._enter(way, *passed, frame)

    def _targets(self, source: int, frame: bytes) -> Sequence[Way]:
        if frame[0] & 1:  # to all, or to a group
            return [way for way in self._ways[source] if way.target != source]
        target = self._addresses.get(frame[:6], source)
        return () if target == source else (self._ways[source][target],)

    def _enter(self, way: Way, begin: float, end: float, frame: bytes) -> None:
        if way.is_cut:
            self.counts["cut"] += 1
        elif way.shape.loss and self._random() < way.shape.loss:
            self.counts["lost"] += 1
        elif (passed := way.passes(begin, end, len(frame))) is None:
            self.counts["full"] += 1
        else:
            uniform = self._random() if way.shape.jitter_s else 0.0
            self._fly(*way.delayed(*passed, uniform), False, way, frame)

    def _fly(self, begin: float, end: float, last: bool, way: Way, frame: bytes) -> None:
        self._number += 1  # frames that are due at once leave as they came
        heapq.heappush(self._flying, (end, self._number, begin, last, way, frame))

    def next_due(self) -> float | None:
        """When something is to be done next."""
        return self._flying[0][0] if self._flying else None

    def leaving(self, now: float) -> Iterator[tuple[int, bytes]]:
        """(port, frame) of those that come out by now."""
        while self._flying and self._flying[0][0] <= now:
            end, _, begin, last, way, frame = heapq.heappop(self._flying)
            if way.is_cut:
                self.counts["cut"] += 1
            elif last or self.downlinks[way.target].rate is None:
                self.counts["passed"] += 1
                yield way.target, frame
            elif (out := self.downlinks[way.target].passes(begin, end, len(frame))) is None:
                self.counts["full"] += 1
            else:
                self._fly(*out, True, way, frame)
