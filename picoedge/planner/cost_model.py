"""Estimate seconds per token over given boards and links, and the memory of each. Pure arithmetic.

A token passes two stages a layer, each as slow as its slowest board and followed by a sum over the
boards, and then the head. Weights that do not fit in memory are read meanwhile.

Communication is an alpha-beta model: a hop costs latency, processor time for each message, and
bytes. A sum of one token is a few kilobytes, so latency and messages dominate; that of a prompt is
a few megabytes. Every board has one full-duplex port that all its messages share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from picoedge.mesh.group.codecs import SUM_VALUE_BYTES, is_cut, part_bytes
from picoedge.planner.assignment import Assigner, slices_of
from picoedge.planner.memory import (
    MemoryNeeds,
    MemoryPlan,
    counts_of,
    plan_slice,
)
from picoedge.planner.topology import BoardFacts, LinkFacts, Topology
from picoedge.store.shards import HeldShards, Slice
from picoedge.store.window.plan import UnitCost, forecast, page_bytes

Allreduce = Literal["star", "exchange"]
Routes = Mapping[tuple[int, int], float]  # bytes of a message by (sender, receiver)

WORTH = 1.02  # more boards must be faster by this factor: estimates are no better
PROMPT = 256  # tokens of the prompt whose speed is estimated
INPUT_BYTES = LOGIT_BYTES = 4  # f32
STAR: tuple[Allreduce, ...] = ("star",)  # which takes no link but those to the hub
_ALLREDUCES: tuple[Allreduce, ...] = ("star", "exchange")
_FRAMING = 1.05  # bytes on the wire for one of a message: headers of Ethernet, IP, TCP, CURVE
_MESSAGE_BYTES = 160  # and these for each message


# -- communication ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """The boards of one group by rank; rank 0 is the hub."""

    message_s: tuple[float, ...]  # of each board, to send or to receive one
    link: Callable[[int, int], LinkFacts]

    def hop_s(self, routes: Routes) -> float:
        """Seconds until messages sent at once over these routes are all received.

        A board sends and receives one message after another.
        """
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

    def _wire_s(self, routes: Routes) -> float:
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
    receivers = sorted({0, *head}) if last else list(range(len(network.message_s)))
    if allreduce == "star":
        return _owned_s(network, contributors, (0,), values, receivers)
    if is_cut(int(values), len(contributors)):
        return _owned_s(network, contributors, contributors, values, receivers)
    return network.hop_s(_routes(contributors, receivers, part_bytes(int(values)) * values))


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
    inward = network.hop_s(_routes(contributors, owners, part * share))
    outward = [receiver for receiver in receivers if not alone or receiver != contributors[0]]
    return inward + network.hop_s(_routes(owners, outward, SUM_VALUE_BYTES * share))


def _routes(senders: Sequence[int], receivers: Sequence[int], nbytes: float) -> Routes:
    return {(a, b): nbytes for a in senders for b in receivers if a != b}


@dataclass(frozen=True)
class Contributors:
    """The ranks that contribute to the sums of a layer, and those with shards of the head."""

    attention: tuple[int, ...]
    ffn: tuple[int, ...]
    head: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, slices: Sequence[Slice]) -> Contributors:
        """The ranks of these slices that have shards of each kind."""
        kinds = zip(*((part.attention, part.ffn, part.head_shards) for part in slices), strict=True)
        return cls(*(tuple(rank for rank, own in enumerate(kind) if own) for kind in kinds))


def comm_s(
    network: Network, allreduce: Allreduce, stages: Contributors, layers: int, values: int
) -> float:
    """Seconds of all messages of one pass: the input, and two sums a layer.

    `values` are the elements of a sum: hidden size by tokens.
    """
    given = network.hop_s(_routes((0,), range(len(network.message_s)), INPUT_BYTES * values))
    attention = sum_s(network, allreduce, stages.attention, values, last=False)
    ffn = sum_s(network, allreduce, stages.ffn, values, last=False)
    end = sum_s(network, allreduce, stages.ffn, values, last=True, head=stages.head)
    return given + layers * attention + (layers - 1) * ffn + end


def gather_s(network: Network, logits: Sequence[int]) -> float:
    """Seconds until the hub has all logits, given how many each rank has."""
    given = enumerate(logits)
    return network.hop_s({(r, 0): LOGIT_BYTES * count for r, count in given if r and count})


# -- plan candidates ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """A board's slice, its seconds and its memory. `plan` is set in an exact plan only."""

    board: BoardFacts
    part: Slice
    attention_s: float  # of computing, a token
    ffn_s: float
    head_s: float
    disk_s: float  # of reading, a token
    weights_bytes: int
    streamed_bytes: int  # of them, read for each token
    memory_bytes: int  # at most, when the context is full
    plan: MemoryPlan | None = None

    @property
    def compute_s(self) -> float:
        """Seconds of computing, a token."""
        return self.attention_s + self.ffn_s + self.head_s

    @property
    def resident_bytes(self) -> int:
        """Weights that stay in memory."""
        return max(0, self.weights_bytes - self.streamed_bytes)

    def to_json(self) -> dict[str, Any]:
        """Plain values, sizes in bytes; spans of shards as [first, one past the last]."""
        return {
            "board": self.board.name,
            "key": self.board.key,
            **self.part.to_report(),
            "head": self.part.owns_head,
            "attention_s": self.attention_s,
            "ffn_s": self.ffn_s,
            "head_s": self.head_s,
            "disk_s": self.disk_s,
            "weights_bytes": self.weights_bytes,
            "streamed_bytes": self.streamed_bytes,
            "memory_bytes": self.memory_bytes,
            "budget_bytes": self.board.budget_bytes,
        }


@dataclass(frozen=True)
class Candidate:
    """A plan candidate: seconds of one token over some boards, by rank; rank 0 is the hub.

    `members` are their indices in the cluster.
    """

    members: tuple[int, ...]
    shares: tuple[Share, ...]
    allreduce: Allreduce
    s_per_token: float
    compute_s: float  # of the slowest board of each stage, the head, and picking the token
    comm_s: float  # of sums, input and logits over the network
    disk_s: float  # of the slowest disk
    batch: int  # tokens a prompt is cut into
    prefill_tok_s: float

    @property
    def boards(self) -> int:
        """The number of boards."""
        return len(self.shares)

    @property
    def clock(self) -> str:
        """The bottleneck: "disk", "network" or "compute"."""
        if self.disk_s > self.compute_s + self.comm_s:
            return "disk"
        return "network" if self.comm_s > self.compute_s else "compute"

    def to_json(self) -> dict[str, Any]:
        """Plain values, sizes in bytes."""
        return {
            "boards": [share.to_json() for share in self.shares],
            "allreduce": self.allreduce,
            "s_per_token": self.s_per_token,
            "compute_s": self.compute_s,
            "sync_s": self.comm_s,
            "disk_s": self.disk_s,
            "clock": self.clock,
            "batch": self.batch,
            "prefill_tok_s": self.prefill_tok_s,
        }


class CostModel:
    """Plan candidates for sets of boards of one cluster and one model."""

    def __init__(
        self,
        needs: MemoryNeeds,
        cluster: Topology,
        allreduce: Allreduce | None,
        *,
        split_head: bool = False,
    ) -> None:
        self.needs, self._cluster, self._split_head = needs, cluster, split_head
        self._config = needs.load.config
        self._allreduces = (allreduce,) if allreduce else _ALLREDUCES

    def board(self, member: int) -> BoardFacts:
        """A board by its index in the cluster."""
        return self._cluster.boards[member]

    def best(self, members: Sequence[int], held: Sequence[HeldShards] = ()) -> Candidate | None:
        """The fastest candidate over these boards, the hub first; None: they cannot hold it.

        With `held`, by rank: only of shards that the boards have on their disks.
        """
        gather = partial(self._gather_s, members) if self._split_head else None
        ranks = tuple(range(len(members)))
        _, sums = self._sync(members, Contributors(ranks, ranks))
        boards = [self._cluster.boards[i] for i in members]
        assigner = Assigner(self.needs, boards, sums, gather, held)
        assigned = (slices_of(*shards) for shards in assigner.candidates())
        estimates = (self.estimate(members, slices) for slices in assigned)
        return min(filter(None, estimates), key=lambda one: one.s_per_token, default=None)

    def estimate(self, members: Sequence[int], slices: Sequence[Slice]) -> Candidate | None:
        """The candidate of these slices, boards without shards left out. None: it does not fit."""
        taking = [i for i, s in enumerate(slices) if not i or s.attention or s.ffn or s.head_shards]
        members, slices = [members[i] for i in taking], [slices[i] for i in taking]
        boards = Assigner(self.needs, [self._cluster.boards[i] for i in members])
        shares = tuple(self._share(boards, rank, part) for rank, part in enumerate(slices))
        if any(math.isinf(share.disk_s) for share in shares):
            return None
        allreduce, sums = self._sync(members, Contributors.of(slices))
        sums += self._gather_s(members, [len(part.head_shards) for part in slices])
        compute = boards.boards[0].sampling_s + _slowest(shares) + max(s.head_s for s in shares)
        disk = max(share.disk_s for share in shares)
        s_per_token = max(disk, compute + sums)
        first = Candidate(
            tuple(members), shares, allreduce, s_per_token, compute, sums, disk, 1, 0.0
        )
        return self._with_prompt(first, min(PROMPT, self.needs.load.n_ctx))

    def _share(self, boards: Assigner, rank: int, part: Slice) -> Share:
        board, counts, shard_bytes = boards.boards[rank], counts_of(part), self.needs.shard_bytes
        disk = boards.disk_s(rank, counts)
        need = self.needs.of(counts, hub=rank == 0, numpy=board.numpy)
        streamed = 0 if math.isinf(disk) else round(disk * board.disk_bytes_per_s)
        memory = board.fixed_bytes + need.beside + need.weights
        return Share(
            board,
            part,
            boards.stage_s("attention", rank, counts.attention),
            boards.stage_s("ffn", rank, counts.ffn),
            boards.stage_s("head", rank, counts.head),
            disk,
            sum(n * nbytes for n, nbytes in zip(counts, shard_bytes.values(), strict=True)),
            streamed,
            board.budget_bytes if streamed else memory,
        )

    def _network(self, members: Sequence[int]) -> Network:
        cluster = self._cluster
        costs = tuple(cluster.boards[i].message_s for i in members)
        return Network(costs, lambda a, b: cluster.link_between(members[a], members[b]))

    def _sync(self, members: Sequence[int], stages: Contributors) -> tuple[Allreduce, float]:
        """The faster allreduce for the sums of a token, and its seconds."""
        network, values = self._network(members), self._config.hidden_size
        layers = self._config.num_hidden_layers
        usable = self._allreduces if self._cluster.are_linked(members) else STAR
        seconds = {one: comm_s(network, one, stages, layers, values) for one in usable}
        best = min(seconds, key=lambda one: seconds[one])
        return best, seconds[best]

    def _gather_s(self, members: Sequence[int], head: Sequence[int]) -> float:
        """Seconds until the hub has the logits of so many head shards, by rank."""
        rows = self.needs.load.head_shard_rows
        return gather_s(self._network(members), [rows * shards for shards in head])

    def _with_prompt(self, one: Candidate, batch: int) -> Candidate:
        """The candidate with its speed for a prompt in chunks of `batch` tokens."""
        prompt = min(PROMPT, self.needs.load.n_ctx)
        tokens = min(batch, prompt)
        compute = _slowest(one.shares, tokens)
        layers, values = self._config.num_hidden_layers, self._config.hidden_size * tokens
        stages = Contributors.of([share.part for share in one.shares])
        sums = comm_s(self._network(one.members), one.allreduce, stages, layers, values)
        chunks = math.ceil(prompt / tokens)
        seconds = chunks * max(compute + sums, one.disk_s)
        return dataclasses.replace(one, batch=batch, prefill_tok_s=prompt / seconds)

    def exact(self, one: Candidate) -> Candidate:
        """The exact plan: each board's memory planned as the board itself will plan it.

        Raises MemoryBudgetError.
        """
        shares = tuple(self._planned(share) for share in one.shares)
        pace = one.compute_s + one.comm_s
        disk = max(share.disk_s for share in shares)
        seconds = max([pace, *(_paced_s(share, pace) for share in shares)])
        batch = min(share.plan.batch for share in shares if share.plan)
        again = dataclasses.replace(one, shares=shares, s_per_token=seconds, disk_s=disk)
        return self._with_prompt(again, batch)

    def _planned(self, share: Share) -> Share:
        plan = plan_slice(self.needs.load, share.part, share.board)
        return dataclasses.replace(
            share,
            disk_s=plan.window.forecast.disk_s,
            streamed_bytes=plan.window.streamed_bytes,
            memory_bytes=plan.total,
            plan=plan,
        )


def _slowest(shares: Sequence[Share], tokens: int = 1) -> float:
    """Seconds of so many tokens in all layers: the slowest board of each stage."""
    scale = [max(1.0, tokens / s.board.prefill_gain) if tokens > 1 else 1.0 for s in shares]
    attention = max(s.attention_s * x for s, x in zip(shares, scale, strict=True))
    return attention + max(s.ffn_s * x for s, x in zip(shares, scale, strict=True))


def _paced_s(share: Share, pace_s: float) -> float:
    """Seconds of a token on a board that reads ahead while it waits for the others."""
    assert share.plan is not None
    window = share.plan.window
    if not window.streamed:
        return 0.0
    steps = [UnitCost(page_bytes(unit), unit not in window.resident) for unit in window.units]
    rates = share.plan.reading.rates
    idle = max(0.0, pace_s - window.forecast.compute_s) / len(steps)
    return forecast(
        steps, window.ring, dataclasses.replace(rates, unit_s=rates.unit_s + idle)
    ).s_per_token
