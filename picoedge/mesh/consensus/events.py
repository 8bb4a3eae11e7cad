"""Events that the machine is told, and the effects that it asks for in return.

The service around it carries effects out in their order. A worker gets `Adopt`, `Freeze` and
`Fence` in that order too, and answers the last two by `Frozen` and `Fenced`.
"""

from __future__ import annotations

from dataclasses import dataclass

from picoedge.mesh.consensus.configuration import (
    Ballot,
    BoardId,
    Configuration,
    ConfigurationId,
    Epoch,
    Snapshot,
)
from picoedge.mesh.consensus.messages import ConsensusMessage
from picoedge.mesh.consensus.record import StoredRecord


@dataclass(frozen=True, slots=True)
class Report:
    """Progress of a board's worker; without `state` it has none (restarted, or a learner).

    `running`: the configuration whose sums it makes. `holds_sum`: whether it still has the sum that
    led to its state. `finished`: micro-batches of the running step, as bits. `progress` grows with
    whatever the worker finishes or receives, and every few ticks while it computes: a layer will
    do, a micro-batch may take too long.
    """

    state: Snapshot | None = None
    running: ConfigurationId | None = None
    holds_sum: bool = False
    finished: int = 0
    progress: int = 0
    checkpoint: Snapshot | None = None


NO_STATE = Report()


# Events


@dataclass(frozen=True, slots=True)
class Tick:
    """A heartbeat interval has passed for this process.

    However long it was stopped, that is one tick: silence is counted in ticks, so a board that was
    stopped does not take its own silence for that of the others.
    """


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """A frame came. `to`: the incarnation it is for, 0: any; `relayed`: by way of another board."""

    sender: BoardId
    to: int
    message: ConsensusMessage
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class Reported:
    """The worker's page was read."""

    report: Report


@dataclass(frozen=True, slots=True)
class Frozen:
    """The worker applies no sum of a configuration before `epoch` any more, and stands so."""

    epoch: Epoch
    report: Report


@dataclass(frozen=True, slots=True)
class Fenced:
    """The worker's answer to `Fence`: it sends no part of step `start` or later; None: it has."""

    ballot: Ballot
    start: int | None


@dataclass(frozen=True, slots=True)
class Stored:
    """The record of `Store` with this sequence number, and all before it, are durable."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection to a board has ended: it counts as silent until it is heard again."""

    key: str


@dataclass(frozen=True, slots=True)
class Revoked:
    """A key is no longer allowed."""

    key: str


@dataclass(frozen=True, slots=True)
class Proven:
    """A learner's state was proven equal to that of this board, a member. To be repeated."""

    board: BoardId


@dataclass(frozen=True, slots=True)
class Weighted:
    """Shares of the micro-batches that boards should have from now on, by key."""

    weights: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Join:
    """This board shall take part."""


@dataclass(frozen=True, slots=True)
class Leave:
    """This board shall take part no longer. `leaves_one`: even if one copy of the state is left."""

    leaves_one: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    """The owner's command: go on without the boards that are not there, in a new generation."""


MachineEvent = (
    Tick | FrameReceived | Reported | Frozen | Fenced | Stored | Lost | Revoked | Proven | Weighted
    | Join | Leave | Resume
)  # fmt: skip


# Effects


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to the process `to` of a board."""

    key: str
    to: int
    message: ConsensusMessage


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Send a message to every board of the cluster, to whatever process it runs."""

    message: ConsensusMessage


@dataclass(frozen=True, slots=True)
class Store:
    """Make a record durable, then tell `Stored`. Records are stored in order; the last one counts.

    Nothing else may wait for it: what has to wait is not asked for before `Stored` has come.
    """

    sequence: int
    record: StoredRecord


@dataclass(frozen=True, slots=True)
class Adopt:
    """A configuration is chosen: the worker goes by `duty` from now on. Lifts fences."""

    configuration: Configuration


@dataclass(frozen=True, slots=True)
class Freeze:
    """The worker shall apply no sum of a configuration before `epoch`, and tell `Frozen`.

    The last one counts: an earlier epoch takes back what a survey froze.
    """

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Fence:
    """The worker shall send no part of step `start` or later, and tell `Fenced`.

    None: of the step after the one it is in. A later fence takes the place of an earlier one.
    """

    ballot: Ballot
    start: int | None


@dataclass(frozen=True, slots=True)
class SendByRelay:
    """Send all frames for a board by way of `via` as well; None: no longer."""

    key: str
    via: str | None


@dataclass(frozen=True, slots=True)
class Declined:
    """The owner's command is not carried out; to be shown."""

    reason: str


Effect = Send | Broadcast | Store | Adopt | Freeze | Fence | SendByRelay | Declined
