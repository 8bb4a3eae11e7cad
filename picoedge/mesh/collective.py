"""Sums over boards: what every way of adding has in common.

A forward pass is an INPUT, then two sums a layer, of what attention and what the FFN adds. All
boards count them alike, so a message says which sum it belongs to and nothing else is taken for it.
Parts are added in f64 in the order of ranks: every board has the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from picoedge.errors import ProtocolError
from picoedge.mesh import curve
from picoedge.mesh.codec import Codec
from picoedge.mesh.links import HUB, Links
from picoedge.mesh.wire import HEADER, MAGIC, U32, VERSION, Bounds, Dtype, Header, Kind, unpack

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# Of one message: no heartbeat waits long behind it, and the hub adds one while the next arrives.
PIECE_BYTES = 256 << 10
# A board may be a sum ahead of another that adds nothing to that one; pipes hold three sums.
SUMS_IN_FLIGHT = 3
MESSAGES_BESIDE = 16
FRAME_SLACK = 1024
SUM_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Stages:
    """Who adds to what: ranks with attention shards and with FFN shards, each ascending."""

    attention: tuple[int, ...]
    ffn: tuple[int, ...]
    layers: int

    @property
    def count(self) -> int:
        """Sums in one forward pass."""
        return 2 * self.layers

    def contributors(self, stage: int) -> tuple[int, ...]:
        """Ranks that add to that sum of a forward pass."""
        return self.ffn if stage % 2 else self.attention

    def ranks_taking(self, stage: int, ranks: Sequence[int]) -> tuple[int, ...]:
        """Ranks that go on with the sum: all, but after the last FFN only the hub."""
        return (HUB,) if stage == self.count - 1 else tuple(ranks)


@dataclass(frozen=True)
class Rows:
    """The arrays of a session: at most `batch` rows of `hidden` numbers, in pieces of rows."""

    batch: int
    hidden: int

    @property
    def in_piece(self) -> int:
        """Rows of one message."""
        return max(1, PIECE_BYTES // (self.hidden * 8))

    def pieces(self, n: int) -> list[slice]:
        """The pieces that n rows are sent in."""
        step = self.in_piece
        return [slice(first, min(first + step, n)) for first in range(0, n, step)]

    def socket_bounds(self) -> curve.Bounds:
        """What the session's sockets take."""
        pieces = len(self.pieces(self.batch))
        return curve.Bounds(
            self.in_piece * self.hidden * 8 + FRAME_SLACK, SUMS_IN_FLIGHT * pieces + MESSAGES_BESIDE
        )

    def wire_bounds(self) -> Bounds:
        """What a header may speak of."""
        return Bounds(max(self.batch, self.hidden), self.batch * self.hidden)


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

    def input(self, x: F32, position: int) -> None:
        """The hub begins a forward pass with x, f32 [n, hidden], at that position."""

    def next_input(self) -> tuple[F32, int] | None:
        """A worker waits for the next forward pass: x and its position; None at the end."""

    def reduce(self, sums: F64) -> None:
        """Replace this board's sums, f64 [n, hidden], by those over all boards."""

    def usage(self) -> SyncUsage:
        """What it has taken so far."""


class Member:
    """One board's side of a session: counting, sending and receiving, in pieces of rows.

    `ranks` are all of the session. Raises BoardLostError and BoardFaultError, as Links does;
    after either, or after anything else that leaves a forward pass unfinished, it is of no use.
    """

    def __init__(
        self,
        links: Links,
        ranks: Sequence[int],
        stages: Stages,
        rows: Rows,
        codec: Codec,
        *,
        x: F32 | None = None,
        patience_s: float = SUM_PATIENCE_S,
    ) -> None:
        self._links, self._stages, self._rows, self._codec = links, stages, rows, codec
        self._rank = links.rank
        self._ranks, self._others = tuple(ranks), tuple(r for r in ranks if r != links.rank)
        self._x, self._patience_s = x, patience_s
        self._row_bytes = codec.row_bytes(rows.hidden)
        self._stage = stages.count  # of the forward pass; none is under way
        self._sequence = 0  # of inputs and sums since the session began
        self._usage = SyncUsage(late_s=dict.fromkeys(self._others, 0.0))

    # -- inputs --------------------------------------------------------------------------------

    def input(self, x: F32, position: int) -> None:
        """The hub begins a forward pass with x, f32 [n, hidden], at that position."""
        assert self._rank == HUB
        assert self._stage == self._stages.count, "the last forward pass is unfinished"
        for piece in self._rows.pieces(len(x)):
            header = self._header(Kind.INPUT, Dtype.F32, len(x), position + piece.start)
            self._send(self._others, header, memoryview(x[piece]).cast("B"))
        self._begin()

    def next_input(self) -> tuple[F32, int] | None:
        """A worker waits for the next forward pass: x and its position; None at the end.

        x is f32 [n, hidden] in the array given at the start or in one of its own.
        """
        header, body = self._first_input()
        if header.kind is Kind.BYE:
            return None
        n, position = header.shape[0], header.extra
        if self._x is None:
            self._x = np.zeros((self._rows.batch, self._rows.hidden), np.float32)
        x = self._x[:n]
        for piece in self._rows.pieces(n):
            if piece.start:
                expected = self._header(Kind.INPUT, Dtype.F32, n, position + piece.start)
                body = self._receive((HUB,), expected, (piece.stop - piece.start) * self._wide)[HUB]
            self._fill(x[piece], body)
        self._begin()
        return x, position

    @property
    def _wide(self) -> int:
        return self._rows.hidden * 4  # bytes of one row of x

    def _fill(self, x: F32, body: memoryview) -> None:
        if len(body) != x.nbytes:
            raise self._links.fault(HUB, f"sent {len(body)} bytes of input instead of {x.nbytes}")
        x[...] = np.frombuffer(body, "<f4").reshape(x.shape)

    def _first_input(self) -> tuple[Header, memoryview]:
        while True:
            _, raw, frame = self._links.receive((HUB,), None)
            header = self._parse(HUB, raw)
            if header is None:
                continue
            shape = (*header.shape, 0, 0)[:2]
            n = shape[0]
            expected = Header(
                Kind.INPUT,
                self._links.epoch,
                self._sequence,
                Dtype.F32,
                (n, self._rows.hidden),
                header.extra,
            )
            is_bye = header.kind is Kind.BYE
            if not is_bye and (header != expected or not 1 <= n <= self._rows.batch):
                raise self._links.fault(HUB, f"sent {header} instead of input {self._sequence}")
            return header, frame.buffer

    def _begin(self) -> None:
        self._stage = 0
        self._count()

    def _count(self) -> None:
        self._sequence = (self._sequence + 1) & U32

    # -- messages ------------------------------------------------------------------------------

    def _header(self, kind: Kind, dtype: Dtype, n: int, extra: int) -> bytes:
        hidden, epoch = self._rows.hidden, self._links.epoch
        return HEADER.pack(
            MAGIC, VERSION, kind, epoch, self._sequence, dtype, 2, n, hidden, 0, extra
        )

    def _sum_header(self, kind: Kind, n: int, first: int) -> bytes:
        return self._header(kind, self._codec.dtype, n, first)

    def _send(self, ranks: Sequence[int], header: bytes, body: memoryview) -> None:
        send = self._links.send
        for rank in ranks:
            send(rank, header, body)

    def _receive(self, ranks: Sequence[int], expected: bytes, nbytes: int) -> dict[int, memoryview]:
        """One message of each of these boards, by rank: those expected, or an error."""
        bodies: dict[int, memoryview] = {}
        missing, receive, usage = list(ranks), self._links.receive, self._usage
        now = begun = time.perf_counter()
        while missing:
            rank, raw, frame = receive(missing, self._patience_s)
            if raw != expected:
                self._check_stale(rank, raw, expected)
                continue
            if len(frame) != nbytes:
                raise self._links.fault(rank, f"sent {len(frame)} bytes instead of {nbytes}")
            bodies[rank] = frame.buffer
            missing.remove(rank)
            now = time.perf_counter()
            usage.late_s[rank] += now - begun
        usage.wait_s += now - begun
        return bodies

    def _receive_sums(
        self, ranks: Sequence[int], kind: Kind, n: int, piece: slice
    ) -> dict[int, memoryview]:
        """A piece of a sum of n rows from each of these boards."""
        expected = self._sum_header(kind, n, piece.start)
        return self._receive(ranks, expected, (piece.stop - piece.start) * self._row_bytes)

    def _check_stale(self, rank: int, raw: bytes, expected: bytes) -> None:
        """Return where a message is of an earlier session; raise where it makes no sense."""
        header = self._parse(rank, raw)
        if header is not None:
            raise self._links.fault(rank, f"sent {header} instead of {unpack(expected)}")

    def _parse(self, rank: int, raw: bytes) -> Header | None:
        """The header, checked; None where it is of an earlier session."""
        try:
            header = unpack(raw, self._rows.wire_bounds())
        except ProtocolError as error:
            raise self._links.fault(rank, f"sent {error.message}") from None
        return None if header.epoch < self._links.epoch else header

    # -- sums ----------------------------------------------------------------------------------

    def _next_stage(self) -> int:
        """The sum that comes now; call `_count` when it is done."""
        assert self._stage < self._stages.count, "a sum outside of a forward pass"
        self._stage += 1
        self._usage.sums += 1
        return self._stage - 1

    def _decode(self, body: memoryview) -> F64:
        return self._codec.decode(body, self._rows.hidden)

    def _add(self, ranks: Sequence[int], parts: dict[int, F64], out: F64) -> None:
        """Leave in `out` the parts of these ranks, added in their order.

        `out` may be one of the parts: it is written when nothing of it is needed any more.
        """
        total = parts[ranks[0]]
        own_next = len(ranks)
        for i, rank in enumerate(ranks):
            if parts[rank] is out:
                own_next = i
        for i, rank in enumerate(ranks[1:], 1):
            free = own_next <= i or own_next == len(ranks)
            total = np.add(total, parts[rank], out=out if free else self._spare(out))
        if total is not out:
            out[...] = total

    def _spare(self, like: F64) -> F64:
        if not hasattr(self, "_spare_rows"):
            self._spare_rows = np.empty((self._rows.in_piece, self._rows.hidden))
        return self._spare_rows[: len(like)]

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
        """Say goodbye (the hub does) and let the links go. Idempotent."""
        if self._rank == HUB:
            self._links.bye()
        self._links.close()
