"""Messages of the boards that agree. `instance`: the epoch that is to be decided.

Bodies are small: a configuration of 64 boards is the largest thing in one. `codec.py` checks what
comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from picoedge.mesh.consensus.configuration import (
    Ballot,
    BoardId,
    Configuration,
    ConfigurationId,
    Epoch,
    Role,
    RunGeneration,
    Snapshot,
)


class Vote(NamedTuple):
    """The configuration that a voter has accepted in an instance, and in which ballot."""

    ballot: Ballot
    configuration: Configuration


class Standing(NamedTuple):
    """A member's state that belongs to the configuration known to be chosen."""

    state: Snapshot
    holds_sum: bool
    finished: int


@dataclass(frozen=True, slots=True)
class Beat:
    """The heartbeat: what this board knows, hears and offers. `age`: ticks since it started.

    `hears`: keys of boards of the configuration whose frames come directly. `uplink`: bytes a
    second, of any scale.
    """

    known: ConfigurationId | None
    role: Role
    age: int
    uplink: int
    progress: int
    hears: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Configured:
    """A configuration that is chosen. The answer to a frame of an earlier epoch."""

    configuration: Configuration


@dataclass(frozen=True, slots=True)
class Request:
    """A board asks the members to be made a learner, or to be left out (`leave`).

    `leaves_one`: its owner wants so even if a single copy of the state is left.
    """

    leave: bool = False
    leaves_one: bool = False


@dataclass(frozen=True, slots=True)
class Suspect:
    """These boards are not heard here. With `failed`: does the receiver think so too?

    A pre-vote (Ongaro, 9.6): no board promises or stops anything for it.
    """

    instance: Epoch
    boards: tuple[BoardId, ...]
    failed: bool


@dataclass(frozen=True, slots=True)
class Agree:
    """The sender would answer a `Prepare`."""

    instance: Epoch


@dataclass(frozen=True, slots=True)
class Unheard:
    """`by` does not hear the receiver; the sender does, and relays."""

    by: str


@dataclass(frozen=True, slots=True)
class Prepare:
    """Paxos 1a, of a ballot of round 1 or later, because of the boards in `suspects`."""

    instance: Epoch
    ballot: Ballot
    suspects: tuple[BoardId, ...]


@dataclass(frozen=True, slots=True)
class Promise:
    """Paxos 1b: the sender is frozen, stands so, and has accepted `vote`.

    With its role, which a proposer that has just restarted may not have heard yet.
    """

    instance: Epoch
    ballot: Ballot
    role: Role
    standing: Standing | None
    vote: Vote | None
    checkpoint: Snapshot | None


@dataclass(frozen=True, slots=True)
class Accept:
    """Paxos 2a. `promisers`: whose promises it was chosen from; none in round 0."""

    instance: Epoch
    ballot: Ballot
    configuration: Configuration
    promisers: tuple[BoardId, ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """Paxos 2b, to everyone whom it concerns: each counts, so that learning is one hop."""

    instance: Epoch
    ballot: Ballot
    configuration: Configuration


@dataclass(frozen=True, slots=True)
class Refused:
    """The sender will never accept this ballot of round 0."""

    instance: Epoch
    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Survey:
    """The owner goes on without the boards that are not there: the receiver freezes and answers."""

    generation: RunGeneration


@dataclass(frozen=True, slots=True)
class Surveyed:
    """The sender's latest state or checkpoint; None: it has neither."""

    generation: RunGeneration
    known: Configuration | None
    latest: Snapshot | None


ConsensusMessage = (
    Beat | Configured | Request | Suspect | Agree | Unheard | Prepare | Promise | Accept | Accepted
    | Refused | Survey | Surveyed
)  # fmt: skip
