"""How long it takes to add what boards have computed, one hop after another. Pure arithmetic.

A sum of a token is a few kilobytes: what it costs is mostly hops and messages, not bytes. Every
board has one port, full duplex, that all its messages share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from picoedge.engine.cluster_facts import LinkFacts

Allreduce = Literal["star", "exchange"]

SUM_BYTES = 8  # f64
INPUT_BYTES = 4  # f32
_FRAMING = 1.05  # bytes on the wire for one of a message: headers of Ethernet, IP, TCP, CURVE
_MESSAGE_BYTES = 160  # and these for each message


@dataclass(frozen=True)
class Network:
    """The boards of one session by rank, the hub being rank 0."""

    message_s: tuple[float, ...]  # of each board, to send or to receive one
    link: Callable[[int, int], LinkFacts]

    @property
    def ranks(self) -> range:
        """All boards."""
        return range(len(self.message_s))

    def hop_s(self, ways: Sequence[tuple[int, int]], nbytes: float) -> float:
        """Seconds until messages of `nbytes`, sent at once over these ways, are all received.

        A way is (from, to). A board sends one message after another, and receives likewise.
        """
        if not ways:
            return 0.0
        size = _FRAMING * nbytes + _MESSAGE_BYTES
        sending = max(self._busy_s([a for a, _ in ways]).values())
        receiving = max(self._busy_s([b for _, b in ways]).values())
        latency = max(self.link(a, b).latency_s for a, b in ways)
        return sending + latency + self._wire_s(ways, size) + receiving

    def _busy_s(self, ends: Iterable[int]) -> dict[int, float]:
        """Processor time of each board for the messages that begin, or end, there."""
        busy: dict[int, float] = {}
        for rank in ends:
            busy[rank] = busy.get(rank, 0.0) + self.message_s[rank]
        return busy

    def _wire_s(self, ways: Sequence[tuple[int, int]], size: float) -> float:
        """The time of the busiest port or link."""
        ports: dict[tuple[str, int], list[float]] = {}
        for a, b in ways:
            rate = self.link(a, b).bytes_per_s
            ports.setdefault(("out", a), []).append(rate)
            ports.setdefault(("in", b), []).append(rate)
        shared = max(size * len(rates) / max(rates) for rates in ports.values())
        slowest = max(size / min(rates) for rates in ports.values())
        return max(shared, slowest)


def sum_s(
    network: Network, way: Allreduce, contributors: Sequence[int], nbytes: float, *, last: bool
) -> float:
    """Seconds of one sum of `nbytes` to which these boards contribute.

    After it every board has the sum; of the `last` one of a token only the hub. A star takes one
    hop to the hub and one back, an exchange one hop and more messages.
    """
    others = [] if last else [rank for rank in network.ranks if rank]
    if way == "star":
        inward = network.hop_s([(rank, 0) for rank in contributors if rank], nbytes)
        return inward + network.hop_s([(0, rank) for rank in others], nbytes)
    ways = [(a, b) for a in contributors for b in (0, *others) if a != b]
    return network.hop_s(ways, nbytes)


@dataclass(frozen=True)
class Stages:
    """Which ranks contribute to the sums of a layer."""

    attention: tuple[int, ...]
    ffn: tuple[int, ...]


def sync_s(network: Network, way: Allreduce, stages: Stages, layers: int, values: int) -> float:
    """Seconds of everything that travels for one pass: the input, and two sums a layer.

    `values` are the elements of a sum: hidden size by tokens.
    """
    given = network.hop_s([(0, rank) for rank in network.ranks if rank], INPUT_BYTES * values)
    nbytes = SUM_BYTES * values
    attention = sum_s(network, way, stages.attention, nbytes, last=False)
    ffn = sum_s(network, way, stages.ffn, nbytes, last=False)
    end = sum_s(network, way, stages.ffn, nbytes, last=True)
    return given + layers * attention + (layers - 1) * ffn + end
