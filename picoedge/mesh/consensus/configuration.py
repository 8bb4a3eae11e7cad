"""A configuration: which boards make the sums of a run, and from which step on.

Configurations of a run form one chain. Each is decided by the voters of the one before it, as in
Raft's membership changes of one configuration at a time (Ongaro, "Consensus: Bridging Theory and
Practice", 4.1), with one instance of Paxos (Lamport, "Paxos Made Simple") for each place in the
chain: its *epoch*.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

MAX_MEMBERS = 64  # of one configuration; as many voters, and as many learners
MAX_MICRO_BATCHES = 64  # of a step: sets of them are bits of an integer
MAX_ROUTES = 128  # a member that hears none of 63 others, and that none hears, needs 126
MAX_STEP = 1 << 48  # beyond any run, and an exact number in JSON


class Role(str, Enum):
    """A board's part in a run, as it offers."""

    TRAINER = "trainer"
    WITNESS = "witness"  # votes where that makes the voters odd, and never trains


class BoardId(NamedTuple):
    """One process of a board. A later process of the same key has a larger incarnation."""

    key: str
    incarnation: int


NOBODY = BoardId("", 0)


class RunGeneration(NamedTuple):
    """The part of a run's history without a loss of final steps.

    `maker`: of the owner's command that made it; NOBODY if the boards made it themselves, where
    agreement makes it unique. Of two commands given at once on two sides of a split, the larger
    wins when the sides meet.
    """

    number: int
    maker: BoardId


class Epoch(NamedTuple):
    """A place in the chain of configurations."""

    generation: RunGeneration
    number: int

    @property
    def next(self) -> Epoch:
        """The epoch that the voters of this one decide."""
        return Epoch(self.generation, self.number + 1)


class Ballot(NamedTuple):
    """A proposer's attempt. Round 0: a planned change by the lowest rank, without promises."""

    round: int
    attempt: int
    board: BoardId


class ConfigurationId(NamedTuple):
    """The name of one configuration: two proposers may make different ones for an epoch."""

    epoch: Epoch
    ballot: Ballot


class Snapshot(NamedTuple):
    """The name of a state of the run: its step, and the configuration whose sum led there, if any.

    States with the same step and maker are equal to the bit.
    """

    generation: RunGeneration
    step: int
    made_by: ConfigurationId | None


class Route(NamedTuple):
    """Frames of one member to another that go by way of a third. Ranks."""

    sender: int
    receiver: int
    relay: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """The boards that make the sums of a run from step `start` on, and their parts.

    `holdings`, `weights` and `shares` follow the order of `members`.
    `source`: the member that has the sum which leads to `start`; those one step short ask it.
    `holdings`: micro-batches of step `start`, as bits, that members have finished already.
    `shares`: how many segments of the gradient each member sums up, one after the other.
    `restores`: the checkpoint that a new generation begins from, None where states live on.
    """

    run: str
    epoch: Epoch
    ballot: Ballot
    members: tuple[BoardId, ...]
    voters: tuple[BoardId, ...]
    learners: tuple[BoardId, ...]
    start: int
    source: BoardId
    holdings: tuple[int, ...]
    weights: tuple[int, ...]
    shares: tuple[int, ...]
    routes: tuple[Route, ...] = ()
    restores: Snapshot | None = None

    @property
    def identity(self) -> ConfigurationId:
        """The name of this configuration."""
        return ConfigurationId(self.epoch, self.ballot)

    def fault(self) -> str:
        """Its first fault, "" if there is none: configurations of peers are checked by this."""
        members = set(self.members)
        keys = [board.key for board in self.members]
        lengths = {len(self.holdings), len(self.weights), len(self.shares)}
        if not keys or len(set(keys)) < len(keys):
            return "members are missing or named twice"
        if lengths != {len(keys)} or self.source not in members:
            return "not every member has its part"
        if not members <= set(self.voters) or len({v.key for v in self.voters}) < len(self.voters):
            return "a member has no vote, or a voter two"
        if members & set(self.learners):
            return "a member is a learner too"
        if any(a & b for i, a in enumerate(self.holdings) for b in self.holdings[:i]):
            return "a micro-batch is held twice"
        if any(max(route) >= len(keys) or len(set(route)) < 3 for route in self.routes):
            return "a route leads through no other member"
        return ""


def keys_of(boards: Collection[BoardId]) -> set[str]:
    """The keys of boards, whatever their incarnations."""
    return {board.key for board in boards}


def is_quorum(voters: Sequence[BoardId], keys: Collection[str]) -> bool:
    """Whether boards with these keys may decide for `voters`, which are in rank order.

    A majority may; exactly half may if the lowest rank is among them, so that of two boards one can
    go on alone. Any two quorums share a voter. Counted by key: a voter that has restarted votes on,
    as what it accepted is stored.

    Without the majority, or with just any half, two sides of a split decide differently.
    """
    present = sum(voter.key in keys for voter in voters)
    if 2 * present == len(voters):
        return present > 0 and voters[0].key in keys
    return 2 * present > len(voters)
