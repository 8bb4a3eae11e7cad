"""Communication cost of a group: seconds of sums, inputs and logits over links. Pure arithmetic.

An alpha-beta model: a hop costs latency, processor time for each message, and bytes. A sum of one
token is a few kilobytes, so latency and messages dominate; that of a prompt is a few megabytes.
Every board has one full-duplex port that all its messages share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from picoedge.mesh.group.allreduce import is_cut
from picoedge.mesh.group.codecs import SUM_VALUE_BYTES, part_bytes
from picoedge.planner.topology import LinkFacts

Allreduce = Literal["star", "exchange"]

INPUT_BYTES = LOGIT_BYTES = 4  # f32
_FRAMING = 1.05  # bytes on the wire for one of a message: headers of Ethernet, IP, TCP, CURVE
_MESSAGE_BYTES = 160  # and these for each message


@dataclass(frozen=True)
class Network:
    """The boards of one group by rank; rank 0 is the hub."""

    message_s: tuple[float, ...]  # of each board, to send or to receive one
    link: Callable[[int, int], LinkFacts]

    @property
    def ranks(self) -> range:
        """All boards."""
        return range(len(self.message_s))

    def hop_s(self, routes: Sequence[tuple[int, int]], nbytes: float) -> float:
        """Seconds until messages of `nbytes`, sent at once over these routes, are all received.

        A route is (sender, receiver). A board sends and receives one message after another.
        """
        return self.unequal_hop_s(dict.fromkeys(routes, nbytes))

    def unequal_hop_s(self, routes: Mapping[tuple[int, int], float]) -> float:
        """As `hop_s`, for messages of different sizes, by route."""
        if not routes:
            return 0.0
        sending = max(self._busy_s([a for a, _ in routes]).values())
        receiving = max(self._busy_s([b for _, b in routes]).values())
        latency = max(self.link(a, b).latency_s for a, b in routes)
        return sending + latency + self._wire_s(routes) + receiving

    def _busy_s(self, ends: Iterable[int]) -> dict[int, float]:
        """Processor seconds of each board for the messages it sends, or receives."""
        busy: dict[int, float] = {}
        for rank in ends:
            busy[rank] = busy.get(rank, 0.0) + self.message_s[rank]
        return busy

    def _wire_s(self, routes: Mapping[tuple[int, int], float]) -> float:
        """Seconds of the busiest port or link."""
        ports: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for (a, b), nbytes in routes.items():
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
    allreduce: Allreduce,
    contributors: Sequence[int],
    values: float,
    *,
    last: bool,
    head: Sequence[int] = (),
) -> float:
    """Seconds of one exact sum of so many values to which these ranks contribute.

    All ranks receive the sum; the `last` sum of a token only the hub and the ranks with shards of
    the `head`. A star takes one hop to the hub and one back; an exchange one hop and more messages;
    a large exchange is cut, each contributor owning a chunk (reduce-scatter, then all-gather).
    """
    receivers = sorted({0, *head}) if last else list(network.ranks)
    if allreduce == "star":
        return _owned_s(network, contributors, (0,), values, receivers)
    if is_cut(int(values), len(contributors)):
        return _owned_s(network, contributors, contributors, values, receivers)
    nbytes = part_bytes(int(values)) * values
    return network.hop_s(_routes(contributors, receivers), nbytes)


def _owned_s(
    network: Network,
    contributors: Sequence[int],
    owners: Sequence[int],
    values: float,
    receivers: Sequence[int],
) -> float:
    """Partial sums go to the owners of their values, sums from there to the other receivers."""
    share = values / len(owners)
    alone = len(contributors) == 1
    part = SUM_VALUE_BYTES if alone else part_bytes(int(share))
    inward = network.hop_s(_routes(contributors, owners), part * share)
    outward = [receiver for receiver in receivers if not alone or receiver != contributors[0]]
    return inward + network.hop_s(_routes(owners, outward), SUM_VALUE_BYTES * share)


def _routes(senders: Sequence[int], receivers: Sequence[int]) -> list[tuple[int, int]]:
    return [(a, b) for a in senders for b in receivers if a != b]


@dataclass(frozen=True)
class Contributors:
    """The ranks that contribute to the sums of a layer, and those with shards of the head."""

    attention: tuple[int, ...]
    ffn: tuple[int, ...]
    head: tuple[int, ...] = (0,)


def comm_s(
    network: Network, allreduce: Allreduce, stages: Contributors, layers: int, values: int
) -> float:
    """Seconds of all messages of one pass: the input, and two sums a layer.

    `values` are the elements of a sum: hidden size by tokens.
    """
    given = network.hop_s([(0, rank) for rank in network.ranks if rank], INPUT_BYTES * values)
    attention = sum_s(network, allreduce, stages.attention, values, last=False)
    ffn = sum_s(network, allreduce, stages.ffn, values, last=False)
    end = sum_s(network, allreduce, stages.ffn, values, last=True, head=stages.head)
    return given + layers * attention + (layers - 1) * ffn + end


def gather_s(network: Network, logits: Sequence[int]) -> float:
    """Seconds until the hub has all logits, given how many each rank has."""
    given = enumerate(logits)
    return network.unequal_hop_s({(r, 0): LOGIT_BYTES * count for r, count in given if r and count})
