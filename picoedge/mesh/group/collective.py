"""Sums over boards: when they are due, who adds to them, and what they take.

A forward pass is an INPUT, then two stages a layer, of what attention and what the FFN adds. Each
ends in a sum, or in two, each of some of the rows: one travels while the other is computed. All
boards count them alike, so a message says which sum it belongs to and nothing else is taken for it.
Parts are added in f64 in the order of ranks. A sum is read as f32, and may be rounded to that on
its way: every board reads the same bits. Where boards share the head, logits are gathered at the
hub when it has asked for them, a few rows at a time; these are counted as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from picoedge.kernels.arrays import F32, F64
from picoedge.mesh.transport import curve
from picoedge.mesh.transport.frames import HUB, PREFIX_BYTES, ShapeBounds

Finish = Callable[[], None]

# Of one message: no heartbeat waits long behind it, and the hub adds one while the next arrives.
PIECE_VALUES = 32 << 10
INPUT_BYTES = LOGIT_BYTES = 4  # f32
LOGIT_VALUES = PIECE_VALUES * 8 // LOGIT_BYTES  # of one message
# A board may be a lane ahead of another, and a sum more where that one adds nothing to it.
SUMS_IN_FLIGHT = 3
MESSAGES_BESIDE = 16


@dataclass(frozen=True)
class Stages:
    """Who adds to what: ranks with attention shards and with FFN shards, each ascending.

    `columns`, by rank, are those of the logits that each board computes; of none, where the hub
    has all of the head.
    """

    attention: tuple[int, ...]
    ffn: tuple[int, ...]
    layers: int
    columns: tuple[range, ...] = ()

    @property
    def count(self) -> int:
        """Stages of one forward pass, each of which ends in a sum."""
        return 2 * self.layers

    def contributors(self, stage: int) -> tuple[int, ...]:
        """Ranks that add to the sums of that stage of a forward pass."""
        return self.ffn if stage % 2 else self.attention

    def takers(self, stage: int, ranks: Sequence[int]) -> list[int]:
        """Those of the ranks that are told the sum by others.

        A board that adds alone has it already; after the last FFN only the hub goes on with it,
        and who has some of the head.
        """
        alone = self.contributors(stage)
        last = stage == self.count - 1
        ends = (HUB, *self.givers) if last else ranks
        return [rank for rank in ranks if alone != (rank,) and rank in ends]

    @property
    def givers(self) -> tuple[int, ...]:
        """Ranks that give logits to the hub."""
        return tuple(rank for rank, own in enumerate(self.columns) if own and rank != HUB)


@dataclass(frozen=True)
class Rows:
    """The arrays of a session: at most `batch` rows of `hidden` numbers, sent in pieces.

    And the logits, as rows and columns, that are gathered at once, at most.
    """

    batch: int
    hidden: int
    logits: tuple[int, int] = (0, 0)

    @property
    def message_bytes(self) -> int:
        """Bytes of the longest message."""
        return PREFIX_BYTES + max(PIECE_VALUES * 8, self.hidden * INPUT_BYTES)

    @property
    def most_pieces(self) -> int:
        """Messages of one sum, at most: one for what a share leaves over."""
        return -(-self.batch * self.hidden // PIECE_VALUES) + 1

    def pieces(self, n: int) -> list[slice]:
        """The pieces that n rows of input are sent in: rows."""
        return pieces(slice(0, n), max(1, PIECE_VALUES * 8 // (self.hidden * INPUT_BYTES)))

    def socket_bounds(self) -> curve.SocketBounds:
        """What a link takes: bytes of a message, and messages before their time."""
        gathered = self.logits[0] * -(-self.logits[1] // LOGIT_VALUES)
        longest = max(self.most_pieces, len(self.pieces(self.batch)), gathered)
        messages = SUMS_IN_FLIGHT * longest + MESSAGES_BESIDE
        return curve.SocketBounds(self.message_bytes, messages)

    def wire_bounds(self) -> ShapeBounds:
        """What a header may speak of."""
        elements = max(self.batch * self.hidden, self.logits[0] * self.logits[1])
        return ShapeBounds(max(self.batch, self.hidden, *self.logits), elements)


def flat(sums: F64) -> F64:
    """The values of an array one after the other, not a copy."""
    assert sums.flags.c_contiguous
    return sums.reshape(-1)


def pieces(run: slice, step: int = PIECE_VALUES) -> list[slice]:
    """The pieces, in order, that a run of values is sent in."""
    return [slice(first, min(first + step, run.stop)) for first in range(run.start, run.stop, step)]


@dataclass
class SyncUsage:
    """What sums have taken since the session began.

    `wait_s` is the time this board spent waiting for others. `late_s` is, by rank, how long it took
    from when this board began to wait until that rank's part was here: the slowest has most.
    """

    sums: int = 0
    wait_s: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    late_s: dict[int, float] = field(default_factory=dict)


class Collective(Protocol):
    """How the sums of all boards come together. One object serves one session."""

    def input(self, x: F32, position: int, wanted: int = 0) -> None:
        """The hub begins a forward pass with x, f32 [n, hidden], at that position.

        `wanted`: of how many of the last rows it will gather logits: 0, 1 or n.
        """

    def next_input(self) -> tuple[F32, int, int] | None:
        """A worker waits for the next forward pass: x, its position, `wanted`; None at the end."""

    def begin(self, sums: F64) -> Finish:
        """Send what this board adds to some sums, f64 [n, hidden], of this stage.

        What it gives is to be called, in the order in which sums were begun: it leaves in their
        place those over all boards. The rows of a stage may come in several sums; the next ones of
        the same rows are begun once these are finished.
        """

    def gather(self, logits: F32) -> None:
        """Fill the hub's logits, f32 [rows, columns], with the columns that others have.

        These give theirs, f32 [rows, own columns]. Nothing where the hub has all of them.
        """

    def usage(self) -> SyncUsage:
        """What it has taken so far."""

    def close(self) -> None:
        """Say goodbye, where it is the hub's, and let the links go. Idempotent."""
