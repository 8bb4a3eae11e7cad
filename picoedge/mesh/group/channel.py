"""Channel: ordered messages among the ranks of a group, over its links. Knows arrays only.

All ranks count the same operations (a broadcast, a sum, a gather). So the header in front of a
piece of an array is known before it comes: a receiver computes the 32 bytes it expects and compares
them. Only parts of the next sum may come early, as one rank may be half a batch ahead of another:
they are buffered, within bounds. Any other message is its sender's fault.

    channel = Channel(links, range(3), ArrayLimits(rows=64, width=576), codecs_for("f64", 576))
    number = channel.advance()
    header = channel.header(Kind.DATA, Dtype.F32, (1, 576), 0, number, tag=7)
    channel.send_bytes(channel.others, header, memoryview(x).cast("B"))     on one rank
    body = channel.receive((0,), header)[0]                                 on the others
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from picoedge.errors import BoardLostError, ProtocolError
from picoedge.kernels.arrays import F64
from picoedge.mesh.group.codecs import Codec, Codecs
from picoedge.mesh.group.links import LEAVE_S, SEND_STALL_S, Links
from picoedge.mesh.group.peer_link import BoardFaultError
from picoedge.mesh.transport import curve
from picoedge.mesh.transport.frames import (
    HUB,
    MAGIC,
    PREFIX_BYTES,
    TAGGED_HEADER,
    U32,
    Dtype,
    Header,
    Kind,
    ShapeBounds,
    unpack,
)

# Values of one message: no heartbeat waits long behind it, and an owner adds one piece while the
# next arrives.
PIECE_VALUES = 32 << 10
F32_BYTES = 4  # of one value
F32_PIECE_VALUES = PIECE_VALUES * 8 // F32_BYTES
# One rank may be half a batch ahead of another, and a sum more where that one adds nothing to it.
SUMS_IN_FLIGHT = 3
MESSAGES_BESIDE = 16  # greetings, notes, goodbyes


@dataclass(frozen=True)
class ArrayLimits:
    """The largest arrays of a group: [rows, width], and [rows, columns] that are `gathered`."""

    rows: int
    width: int
    gathered: tuple[int, int] = (0, 0)

    @property
    def message_bytes(self) -> int:
        """Bytes of the longest message."""
        return PREFIX_BYTES + max(PIECE_VALUES * 8, self.width * F32_BYTES)

    @property
    def most_pieces(self) -> int:
        """Messages of one sum, at most: chunks may end in a short one."""
        return -(-self.rows * self.width // PIECE_VALUES) + 1

    def row_pieces(self, n: int) -> list[slice]:
        """The rows of each message of an f32 array [n, width]."""
        return message_pieces(slice(0, n), max(1, F32_PIECE_VALUES // self.width))

    def socket_bounds(self) -> curve.SocketBounds:
        """Bounds of a link: bytes of a message, and messages that came early."""
        gathered = self.gathered[0] * -(-self.gathered[1] // F32_PIECE_VALUES)
        longest = max(self.most_pieces, len(self.row_pieces(self.rows)), gathered)
        return curve.SocketBounds(self.message_bytes, SUMS_IN_FLIGHT * longest + MESSAGES_BESIDE)

    def shape_bounds(self) -> ShapeBounds:
        """Bounds of the shapes in headers."""
        elements = max(self.rows * self.width, self.gathered[0] * self.gathered[1])
        return ShapeBounds(max(self.rows, self.width, *self.gathered), elements)


def message_pieces(span: slice, step: int = PIECE_VALUES) -> list[slice]:
    """The pieces of a span of values, in order: one message each."""
    starts = range(span.start, span.stop, step)
    return [slice(first, min(first + step, span.stop)) for first in starts]


@dataclass
class SyncUsage:
    """The cost of sums since the group began.

    `wait_s`: seconds this rank waited for others. `late_s`, by rank: seconds from when this rank
    began to wait until that rank's message was here; the slowest rank has the most.
    """

    sums: int = 0
    wait_s: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    late_s: dict[int, float] = field(default_factory=dict)


class Channel:
    """One rank's end. `ranks` are all of the group; links to some may be missing (a star).

    Raises BoardLostError and BoardFaultError, as Links does. After either, or anything else that
    leaves an operation unfinished, the channel is of no use. `silence_s`: how long a rank that is
    waited for may send nothing. Headers are of the links' version.
    """

    def __init__(
        self,
        links: Links,
        ranks: Sequence[int],
        limits: ArrayLimits,
        codecs: Codecs,
        *,
        silence_s: float = SEND_STALL_S,
    ) -> None:
        self.rank, self.limits, self.codecs = links.rank, limits, codecs
        self.ranks, self.others = tuple(ranks), tuple(r for r in ranks if r != links.rank)
        self.sequence = 0  # of the next operation
        self.expects_sums = False  # whether a sum follows those begun; else none comes early
        self.scratch = np.empty((2, PIECE_VALUES))
        self._links, self._silence_s = links, silence_s
        self._version, self._epoch = links.version, links.epoch
        self._out = memoryview(bytearray(limits.message_bytes))  # the message sent next
        self._body = self._out[PREFIX_BYTES:]
        # Early parts by rank and header: the buffer each is in, and its bytes there. Buffers are
        # used again, as allocating them each time is slow; those lent are read until `receive`.
        self._early: dict[tuple[int, bytes], tuple[bytearray, memoryview]] = {}
        self._most_early = len(self.others) * limits.most_pieces
        self._free: list[bytearray] = []
        self._lent: list[bytearray] = []
        self._usage = SyncUsage(late_s=dict.fromkeys(self.others, 0.0))

    # -- operations ----------------------------------------------------------------------------

    def advance(self) -> int:
        """Begin an operation; returns its number, the same on all ranks."""
        number = self.sequence
        self.sequence = (number + 1) & U32
        return number

    def advance_sum(self) -> int:
        """Begin a sum, which is counted in the usage."""
        self._usage.sums += 1
        return self.advance()

    def fence(self) -> None:
        """No sum is under way: a part that came early belongs to none. Raises BoardFaultError."""
        for rank, raw in self._early:
            raise self.fault(rank, f"sent {unpack(raw)}, which was never due")

    def header(
        self, kind: int, dtype: Dtype, shape: tuple[int, int], extra: int, number: int, tag: int = 0
    ) -> bytes:
        """The 32 bytes in front of a piece of an array of operation `number`, from any rank.

        `extra` is where the piece begins. `tag` is the program's own, for Kind.DATA.
        """
        if tag and self._version == 1:
            kind, tag = tag, 0
        n, width = shape
        return TAGGED_HEADER.pack(
            MAGIC, self._version, kind, self._epoch, number, dtype, 2, n, width, 0, extra, tag
        )

    # -- sending -------------------------------------------------------------------------------

    def send_bytes(self, ranks: Sequence[int], header: bytes, body: memoryview) -> None:
        """Send one message to each of these ranks."""
        self._body[: len(body)] = body
        self._send(ranks, header, len(body))

    def send_values(self, ranks: Sequence[int], header: bytes, values: F64, codec: Codec) -> None:
        """Send values, f64 [n], encoded. After a lossy codec `values` are as received."""
        nbytes = codec.encode(values, self._body)
        if not codec.lossless:
            codec.decode(self._body[:nbytes], values)
        self._send(ranks, header, nbytes)

    def _send(self, ranks: Sequence[int], header: bytes, nbytes: int) -> None:
        message, send = self._out[: PREFIX_BYTES + nbytes], self._links.send
        message[:PREFIX_BYTES] = header
        for rank in ranks:
            send(rank, message)

    # -- receiving -----------------------------------------------------------------------------

    def receive(self, ranks: Sequence[int], expected: bytes) -> dict[int, memoryview]:
        """One message with the header `expected` from each of these ranks: its buffer, by rank.

        A buffer is valid until the next message of its rank is received or any is sent.
        """
        bodies = self._take_early(ranks, expected)
        missing = [rank for rank in ranks if rank not in bodies]
        receive, usage = self._links.receive, self._usage
        now = begun = time.perf_counter()
        while missing:
            rank, raw, body = receive(missing, self._silence_s)
            if raw != expected:
                self._keep_early(rank, raw, body, expected)
                continue
            bodies[rank] = body
            missing.remove(rank)
            now = time.perf_counter()
            usage.late_s[rank] += now - begun
        usage.wait_s += now - begun
        return bodies

    def receive_next(self, rank: int) -> tuple[Header, bytes, memoryview] | None:
        """The next message of a rank, whatever it is, without time limit; None for a goodbye."""
        _, raw, body = self._links.receive((rank,), None)
        header = self._parse(rank, raw)
        return None if header.kind is Kind.BYE else (header, raw, body)

    def decode(self, rank: int, body: memoryview, codec: Codec, out: F64) -> F64:
        """The values that `rank` sent: in `out`, f64 [n], or a read-only view of the body."""
        try:
            return codec.decode(body, out)
        except ProtocolError as error:
            raise self.fault(rank, f"sent {error.message}") from None

    def _take_early(self, ranks: Sequence[int], expected: bytes) -> dict[int, memoryview]:
        """The messages that were kept, valid until the next call."""
        if not self._early and not self._lent:
            return {}
        self._free += self._lent
        self._lent.clear()
        bodies = {}
        for rank in ranks:
            if kept := self._early.pop((rank, expected), None):
                buffer, bodies[rank] = kept
                self._lent.append(buffer)
        return bodies

    def _keep_early(self, rank: int, raw: bytes, body: memoryview, expected: bytes) -> None:
        """Keep a part of the sum after the current one, whether it is begun here or not.

        Which of its sums a rank begins before it finishes others depends on what it computes.
        Raises if the message is anything else, or says that the group has ended.
        """
        header, due = self._parse(rank, raw), unpack(expected)
        if header.kind is Kind.BYE:
            name, key = self._links.name(rank), self._links.key(rank)
            raise BoardLostError(f"{name} ended the session", board=name, key=key)
        following = (due.sequence + 1) & U32
        got = header.kind, header.epoch, header.sequence
        is_next = got == (Kind.SUM_PART, due.epoch, following)
        is_last = self.sequence == following and not self.expects_sums
        is_new = (rank, raw) not in self._early and len(self._early) < self._most_early
        if not is_next or is_last or not is_new:
            raise self.fault(rank, f"sent {header} instead of {due}")
        buffer = self._free.pop() if self._free else bytearray(self.limits.message_bytes)
        kept = memoryview(buffer)[: len(body)]
        kept[:] = body
        self._early[rank, raw] = buffer, kept

    def _parse(self, rank: int, raw: bytes) -> Header:
        try:
            return unpack(raw, self.limits.shape_bounds(), (self._version,))
        except ProtocolError as error:
            raise self.fault(rank, f"sent {error.message}") from None

    # -- around --------------------------------------------------------------------------------

    def fault(self, rank: int, what: str) -> BoardFaultError:
        """The error that says a rank misbehaves, to be raised."""
        return self._links.fault(rank, what)

    def usage(self) -> SyncUsage:
        """The cost of sums so far; the object is the caller's."""
        links, late_s = self._links, dict(self._usage.late_s)
        sent, received = links.bytes_sent, links.bytes_received
        return replace(self._usage, bytes_sent=sent, bytes_received=received, late_s=late_s)

    def close(self) -> None:
        """Close the links; the hub says goodbye first. Idempotent."""
        if self.rank == HUB:
            self._links.bye()
        self._links.leave(0.0 if self.rank == HUB else LEAVE_S)
        self._links.close()
