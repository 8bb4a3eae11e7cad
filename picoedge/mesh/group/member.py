"""One board's side of a session: counting, sending and receiving, whichever way sums are made."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picoedge.errors import BoardLostError, ProtocolError
from picoedge.kernels.arrays import F32, F64
from picoedge.mesh.group.codecs import QUIET, Codec, Codecs
from picoedge.mesh.group.collective import (
    LOGIT_VALUES,
    PIECE_VALUES,
    Finish,
    Rows,
    Stages,
    SyncUsage,
    pieces,
)
from picoedge.mesh.group.links import SEND_STALL_S, Links
from picoedge.mesh.transport.frames import (
    HUB,
    MAGIC,
    PREFIX,
    PREFIX_BYTES,
    U32,
    Dtype,
    Header,
    Kind,
    unpack,
)

# Tags: rows that a forward pass begins with, and of how many of them logits are wanted (none, the
# last, all), with the position of the first as `extra`; logits. They were kinds in version 1.
INPUT, INPUT_LAST, INPUT_ALL, LOGITS = 2, 8, 9, 10
INPUTS = (INPUT, INPUT_LAST, INPUT_ALL)


def _named(header: Header) -> str:
    names = {INPUT: "INPUT", INPUT_LAST: "INPUT_LAST", INPUT_ALL: "INPUT_ALL", LOGITS: "LOGITS"}
    return f"{names.get(header.tag, '')} {header}".strip()


@dataclass(frozen=True, eq=False)
class Sum:
    """One that is under way: of which stage, which of all, and its values, f64 [n, hidden]."""

    stage: int
    sequence: int
    values: F64

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.values)


class Member(ABC):
    """What the star and the exchange have in common. All that is long goes in pieces.

    `ranks` are all of the session; inputs must end before position `n_ctx`, and go into `x`, f32
    [batch, hidden], where there is one. Raises BoardLostError and BoardFaultError, as Links does;
    after either, or after anything else that leaves a forward pass unfinished, it is of no use.
    """

    def __init__(
        self,
        links: Links,
        ranks: Sequence[int],
        stages: Stages,
        rows: Rows,
        codecs: Codecs,
        *,
        x: F32 | None = None,
        n_ctx: int = U32,
        patience_s: float = SEND_STALL_S,
    ) -> None:
        self._links, self._stages, self._rows, self._codecs = links, stages, rows, codecs
        self._rank = links.rank
        self._ranks, self._others = tuple(ranks), tuple(r for r in ranks if r != links.rank)
        self._inputs = INPUTS if stages.givers else INPUTS[:1]
        self._dtypes = {
            Kind.DATA: Dtype.F32,
            Kind.SUM_PART: codecs.part.dtype,
            Kind.SUM: codecs.whole.dtype,
        }
        self._x, self._n_ctx, self._patience_s = x, n_ctx, patience_s
        self._out = memoryview(bytearray(rows.message_bytes))  # the message that is sent next
        self._spare = np.empty((2, PIECE_VALUES))
        self._stage = stages.count  # of the forward pass; none is under way
        self._rows_left = 0  # of it, whose sums in this stage are not begun
        self._n = 0
        # Of the sum after this, by rank and header: where it is kept, and what.
        self._ahead: dict[tuple[int, bytes], tuple[bytearray, memoryview]] = {}
        self._most_ahead = len(self._others) * rows.most_pieces
        self._room: list[bytearray] = []  # of such messages: to have it anew each time is slow
        self._lent: list[bytearray] = []
        self._sequence = 0  # of inputs and sums since the session began
        self._usage = SyncUsage(late_s=dict.fromkeys(self._others, 0.0))

    # -- inputs --------------------------------------------------------------------------------

    def input(self, x: F32, position: int, wanted: int = 0) -> None:
        """The hub begins a forward pass with x, f32 [n, hidden], at that position.

        `wanted`: of how many of the last rows it will gather logits: 0, 1 or n.
        """
        assert self._rank == HUB
        assert self._stage == self._stages.count, "the last forward pass is unfinished"
        tag = self._inputs[min(wanted, 2, len(self._inputs) - 1)]
        for piece in self._rows.pieces(len(x)):
            message = self._message(x[piece].nbytes)
            message[PREFIX_BYTES:] = memoryview(x[piece]).cast("B")
            self._send(
                self._others, self._header(Kind.DATA, len(x), position + piece.start, tag=tag)
            )
        self._begin_pass(len(x))

    def next_input(self) -> tuple[F32, int, int] | None:
        """A worker waits for the next forward pass: x, its position, `wanted`; None at the end.

        x is f32 [n, hidden] in the array given at the start or in one of its own.
        """
        first = self._first_input()
        if first is None:
            return None
        tag, n, position, body = first
        if self._x is None:
            self._x = np.zeros((self._rows.batch, self._rows.hidden), np.float32)
        x = self._x[:n]
        for piece in self._rows.pieces(n):
            if piece.start:
                expected = self._header(Kind.DATA, n, position + piece.start, tag=tag)
                body = self._receive((HUB,), expected)[HUB]
            self._fill(x[piece], body)
        self._begin_pass(n)
        return x, position, {INPUT: 0, INPUT_LAST: 1}.get(tag, n)

    def _first_input(self) -> tuple[int, int, int, memoryview] | None:
        """Tag, rows, position and first piece of the next forward pass; None for a goodbye."""
        _, raw, body = self._links.receive((HUB,), None)
        header = self._parse(HUB, raw)
        if header.kind is Kind.BYE:
            return None
        tag, n = header.tag, header.shape[0] if header.shape else 0
        fits = 1 <= n <= self._rows.batch and header.extra + n <= self._n_ctx
        due = self._header(Kind.DATA, n, header.extra, tag=tag) if fits else b""
        if tag not in self._inputs or raw != due:
            raise self._links.fault(HUB, f"sent {_named(header)} instead of input {self._sequence}")
        return tag, n, header.extra, body

    def _fill(self, x: F32, body: memoryview) -> None:
        if len(body) != x.nbytes:
            raise self._links.fault(HUB, f"sent {len(body)} bytes of input instead of {x.nbytes}")
        x[...] = np.frombuffer(body, "<f4").reshape(x.shape)

    def _begin_pass(self, n: int) -> None:
        for rank, raw in self._ahead:
            raise self._links.fault(rank, f"sent {unpack(raw)}, which was never due")
        self._stage, self._n, self._rows_left = 0, n, n
        self._count()

    def _count(self) -> None:
        self._sequence = (self._sequence + 1) & U32

    # -- messages ------------------------------------------------------------------------------

    def _header(
        self, kind: Kind, n: int, extra: int, sequence: int | None = None, *, tag: int = 0
    ) -> bytes:
        """What comes before a piece of an array of n rows, from anybody: of the next input or sum.

        `extra`: the position of an input's first row, or the number of a sum's first value.
        """
        width, dtype = self._rows.hidden, self._dtypes[kind]
        sequence = self._sequence if sequence is None else sequence
        return self._prefix(kind, sequence, dtype, n, width, extra, tag)

    def _prefix(
        self, kind: int, sequence: int, dtype: int, n: int, width: int, extra: int, tag: int
    ) -> bytes:
        version, epoch = self._links.version, self._links.epoch
        if tag and version == 1:
            kind, tag = tag, 0
        return PREFIX.pack(MAGIC, version, kind, epoch, sequence, dtype, 2, n, width, 0, extra, tag)

    def _header_of(self, made: Sum, kind: Kind, piece: slice) -> bytes:
        """What comes before these values of a sum."""
        return self._header(kind, made.n, piece.start, made.sequence)

    def _message(self, nbytes: int) -> memoryview:
        """Room for a header and that many bytes: what `_send` sends."""
        self._sending = self._out[: PREFIX_BYTES + nbytes]
        return self._sending

    def _send(self, ranks: Sequence[int], header: bytes) -> None:
        message, send = self._sending, self._links.send_whole
        message[:PREFIX_BYTES] = header
        for rank in ranks:
            send(rank, message)

    def _encode(self, values: F64, codec: Codec) -> None:
        """Make the next message of these values; where they are rounded, go on with that."""
        body = self._out[PREFIX_BYTES:]
        body = self._message(codec.encode(values, body))[PREFIX_BYTES:]
        if not codec.exact:
            codec.decode(body, values)

    def _receive(self, ranks: Sequence[int], expected: bytes) -> dict[int, memoryview]:
        """One message of each of these boards, by rank: those expected, or an error."""
        bodies = self._came_early(ranks, expected)
        missing = [rank for rank in ranks if rank not in bodies]
        receive, usage = self._links.receive, self._usage
        now = begun = time.perf_counter()
        while missing:
            rank, raw, body = receive(missing, self._patience_s)
            if raw != expected:
                self._keep_ahead(rank, raw, body, expected)
                continue
            bodies[rank] = body
            missing.remove(rank)
            now = time.perf_counter()
            usage.late_s[rank] += now - begun
        usage.wait_s += now - begun
        return bodies

    def _came_early(self, ranks: Sequence[int], expected: bytes) -> dict[int, memoryview]:
        """What was kept, there until this is called again."""
        if not self._ahead and not self._lent:
            return {}
        self._room += self._lent
        self._lent.clear()
        bodies = {}
        for rank in ranks:
            if kept := self._ahead.pop((rank, expected), None):
                room, bodies[rank] = kept
                self._lent.append(room)
        return bodies

    def _keep_ahead(self, rank: int, raw: bytes, body: memoryview, expected: bytes) -> None:
        """Keep a part of the sum after the one that is due, be it begun here or not.

        Which of its sums a board begins before it finishes others depends on what it computes.
        Raises where the message is anything else, or says that the session has ended.
        """
        header, due = self._parse(rank, raw), unpack(expected)
        if header.kind is Kind.BYE:
            name = self._links.name(rank)
            raise BoardLostError(f"{name} ended the session", board=name)
        next_sum = header.epoch, header.sequence, header.kind
        is_next = next_sum == (due.epoch, (due.sequence + 1) & U32, Kind.SUM_PART)
        is_last = self._sequence == (due.sequence + 1) & U32 and self._stage == self._stages.count
        is_new = (rank, raw) not in self._ahead and len(self._ahead) < self._most_ahead
        if not is_next or is_last or not is_new:
            raise self._links.fault(rank, f"sent {header} instead of {due}")
        room = self._room.pop() if self._room else bytearray(self._rows.message_bytes)
        kept = memoryview(room)[: len(body)]
        kept[:] = body
        self._ahead[rank, raw] = room, kept

    def _parse(self, rank: int, raw: bytes) -> Header:
        """The header, checked."""
        try:
            return unpack(raw, self._rows.wire_bounds(), (self._links.version,))
        except ProtocolError as error:
            raise self._links.fault(rank, f"sent {error.message}") from None

    # -- sums ----------------------------------------------------------------------------------

    @abstractmethod
    def begin(self, sums: F64) -> Finish:
        """See `Collective.begin`."""

    def reduce(self, sums: F64) -> None:
        """Replace this board's sums, f64 [n, hidden], by those over all boards.

        After the last FFN only the hub's are of use: nobody else goes on with them.
        """
        self.begin(sums)()

    def _next_sum(self, values: F64) -> Sum:
        """The sum that begins now."""
        assert self._stage < self._stages.count, "a sum outside of a forward pass"
        assert 0 < len(values) <= self._rows_left, "more rows than the forward pass has"
        made = Sum(self._stage, self._sequence, values)
        self._rows_left -= len(values)
        if not self._rows_left:
            self._stage, self._rows_left = self._stage + 1, self._n
        self._usage.sums += 1
        self._count()
        return made

    def _decode(self, rank: int, body: memoryview, codec: Codec, out: F64) -> F64:
        """What a board has sent, in `out` or, to be read only, where it is."""
        try:
            return codec.decode(body, out)
        except ProtocolError as error:
            raise self._links.fault(rank, f"sent {error.message}") from None

    @QUIET
    def _add(self, ranks: Sequence[int], bodies: dict[int, memoryview], out: F64) -> None:
        """Leave in `out`, where this board's own part is, the parts of these ranks in their order.

        Until its own is added, the total is kept elsewhere.
        """
        codec, count, (elsewhere, room) = self._codecs.part, len(out), self._spare

        def part(rank: int, room: F64) -> F64:
            return out if rank == self._rank else self._decode(rank, bodies[rank], codec, room)

        own = ranks.index(self._rank) if self._rank in ranks else 0
        total = part(ranks[0], elsewhere[:count])
        for i, rank in enumerate(ranks[1:], 1):
            into = out if i >= own else elsewhere[:count]
            total = np.add(total, part(rank, room[:count]), out=into)
        if total is not out:  # a single part
            out[...] = total

    # -- logits --------------------------------------------------------------------------------

    def gather(self, logits: F32) -> None:
        """Fill the hub's logits, f32 [rows, columns], with the columns that others have.

        These give theirs, f32 [rows, own columns]. Nothing where the hub has all of them.
        """
        if not self._stages.givers:
            return
        assert self._stage == self._stages.count, "logits in the middle of a forward pass"
        ranks = self._stages.givers if self._rank == HUB else (self._rank,)
        longest = max(len(self._stages.columns[rank]) for rank in ranks)
        for row, values in enumerate(logits):
            for piece in pieces(slice(0, longest), LOGIT_VALUES):
                header = self._logits_header(len(logits), row, piece)
                if self._rank == HUB:
                    self._take_logits(values, piece, header)
                else:
                    self._give_logits(values[piece], header)
        self._count()

    def _logits_header(self, n: int, row: int, piece: slice) -> bytes:
        """What comes before this piece of what a board, any of them, has of a row."""
        columns, sequence = self._rows.logits[1], self._sequence
        extra = row * columns + piece.start
        return self._prefix(Kind.DATA, sequence, Dtype.F32, n, columns, extra, LOGITS)

    def _give_logits(self, values: F32, header: bytes) -> None:
        self._message(values.nbytes)[PREFIX_BYTES:] = memoryview(values).cast("B")
        self._send((HUB,), header)

    def _take_logits(self, row: F32, piece: slice, header: bytes) -> None:
        """Put this piece of what each board has in its place in a row."""
        columns = self._stages.columns
        ranks = [rank for rank in self._stages.givers if len(columns[rank]) > piece.start]
        for rank, body in self._receive(ranks, header).items():
            own = columns[rank][piece]
            room = row[own.start : own.stop]
            if len(body) != room.nbytes:
                raise self._links.fault(rank, f"sent {len(body)} bytes of {len(own)} logits")
            room[...] = np.frombuffer(body, "<f4")

    def usage(self) -> SyncUsage:
        """What it has taken so far; the object is the caller's."""
        usage, links = self._usage, self._links
        return SyncUsage(
            usage.sums,
            usage.wait_s,
            links.bytes_sent,
            links.bytes_received,
            dict(usage.late_s),
        )

    def close(self) -> None:
        """Say goodbye, where this is the hub, and let the links go. Idempotent."""
        if self._rank == HUB:
            self._links.bye()
        self._links.close()
