"""How long it takes to add what boards have computed, one hop after another. Pure arithmetic.

A sum of a token is a few kilobytes: what it costs is mostly hops and messages, not bytes; that of a
prompt is a few megabytes. Every board has one port, full duplex, that all its messages share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from picoedge.mesh.group.chunking import SUM_VALUE_BYTES, is_cut, part_bytes
from picoedge.planner.topology import LinkFacts

Allreduce = Literal["star", "exchange"]

INPUT_BYTES = LOGIT_BYTES = 4  # f32
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
        return self.unequal_hop_s(dict.fromkeys(ways, nbytes))

    def unequal_hop_s(self, ways: Mapping[tuple[int, int], float]) -> float:
        """The same for messages of different sizes, by their ways."""
        if not ways:
            return 0.0
        sending = max(self._busy_s([a for a, _ in ways]).values())
        receiving = max(self._busy_s([b for _, b in ways]).values())
        latency = max(self.link(a, b).latency_s for a, b in ways)
        return sending + latency + self._wire_s(ways) + receiving

    def _busy_s(self, ends: Iterable[int]) -> dict[int, float]:
        """Processor time of each board for the messages that begin, or end, there."""
        busy: dict[int, float] = {}
        for rank in ends:
            busy[rank] = busy.get(rank, 0.0) + self.message_s[rank]
        return busy

    def _wire_s(self, ways: Mapping[tuple[int, int], float]) -> float:
        """The time of the busiest port or link."""
        ports: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for (a, b), nbytes in ways.items():
            sent = _FRAMING * nbytes + _MESSAGE_BYTES, self.link(a, b).bytes_per_s
            ports.setdefault(("out", a), []).append(sent)
            ports.setdefault(("in", b), []).append(sent)
        shared, slowest = 0.0, 0.0
        for port in ports.values():
            shared = max(shared, sum(size for size, _ in port) / max(rate for _, rate in port))
            slowest = max(slowest, *(size / rate for size, rate in port))
        return max(shared, slowest)


def sum_s(
    network: Network,
    way: Allreduce,
    contributors: Sequence[int],
    values: float,
    *,
    last: bool,
    head: Sequence[int] = (),
) -> float:
    """Seconds of one sum of so many values, exact, to which these boards contribute.

    After it every board has the sum; of the `last` one of a token only the hub, and the ranks that
    have some of the `head`. A star takes one hop to the hub and one back, an exchange one hop and
    more messages; where that is cut, each contributor is the hub of its share.
    """
    takers = sorted({0, *head}) if last else list(network.ranks)
    if way == "star":
        return _owned_s(network, contributors, (0,), values, takers)
    if is_cut(int(values), len(contributors)):
        return _owned_s(network, contributors, contributors, values, takers)
    nbytes = part_bytes(int(values)) * values
    return network.hop_s(_ways(contributors, takers), nbytes)


def _owned_s(
    network: Network,
    contributors: Sequence[int],
    owners: Sequence[int],
    values: float,
    takers: Sequence[int],
) -> float:
    """Parts go to the owners of their values, sums from there to who takes them but has not."""
    share = values / len(owners)
    alone = len(contributors) == 1
    part = SUM_VALUE_BYTES if alone else part_bytes(int(share))
    inward = network.hop_s(_ways(contributors, owners), part * share)
    told = [taker for taker in takers if not alone or taker != contributors[0]]
    return inward + network.hop_s(_ways(owners, told), SUM_VALUE_BYTES * share)


def _ways(senders: Sequence[int], receivers: Sequence[int]) -> list[tuple[int, int]]:
    return [(a, b) for a in senders for b in receivers if a != b]


@dataclass(frozen=True)
class Contributors:
    """Which ranks contribute to the sums of a layer, and which have some of the head."""

    attention: tuple[int, ...]
    ffn: tuple[int, ...]
    head: tuple[int, ...] = (0,)


def comm_s(
    network: Network, way: Allreduce, stages: Contributors, layers: int, values: int
) -> float:
    """Seconds of everything that travels for one pass: the input, and two sums a layer.

    `values` are the elements of a sum: hidden size by tokens.
    """
    given = network.hop_s([(0, rank) for rank in network.ranks if rank], INPUT_BYTES * values)
    attention = sum_s(network, way, stages.attention, values, last=False)
    ffn = sum_s(network, way, stages.ffn, values, last=False)
    end = sum_s(network, way, stages.ffn, values, last=True, head=stages.head)
    return given + layers * attention + (layers - 1) * ffn + end


def gather_s(network: Network, logits: Sequence[int]) -> float:
    """Seconds until the hub has the logits of all; so many are, by rank, on each board."""
    given = enumerate(logits)
    return network.unequal_hop_s({(r, 0): LOGIT_BYTES * count for r, count in given if r and count})
