"""The link of one pair of boards, which proves rank and epoch and chooses a transport; failures.

    connects                                        listens
    HELLO, its ciphers                    ->                               over CURVE
                                          <-        HELLO, a ticket        over CURVE
    the ticket's name, HELLO              ->                               over a sealed stream

Where both ends may carry messages over ZeroMQ (a bit beside the ciphers, a byte behind the ticket):

    PROBE, 16 KB                          ->  <-    the same               over either, in turn
    CHOICE                                ->                               over what is kept

The kind is HELLO throughout, and `sequence` says which step it is. A board of the first wire
version knows neither the bit nor the byte: its messages travel over the stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from picoedge.errors import BoardLostError, ProtocolError
from picoedge.mesh.transport.connection import Connection, ConnectionEnded, Transport
from picoedge.mesh.transport.frames import PREFIX_BYTES, Header, Kind, pack_prefix, unpack
from picoedge.mesh.transport.sealed_stream import (
    TICKET_BYTES,
    Cipher,
    Ticket,
    ciphers,
    ciphers_from,
    common,
)

if TYPE_CHECKING:
    from picoedge.mesh.transport.limits import Limits
    from picoedge.mesh.transport.sealed_stream import SealedStream
    from picoedge.mesh.transport.waiter import Items

TransportChoice = Literal["auto", "zeromq", "stream"]

HELLO, PROBE, CHOICE = range(3)  # steps, in `sequence`
ZEROMQ_BIT = 0x80  # beside the ciphers: messages may travel over ZeroMQ
PROBE_BYTES = 16 << 10  # the sum of one token, of 2,048 values in f64
ROUNDS = 5  # timed; one more before them, which finds the other board asleep
# Does the failure of this rank concern a board that waits for these ranks?
FailureRule = Callable[[int, Collection[int]], bool]


class BoardFaultError(BoardLostError, ProtocolError):
    """A board of the group sent what the protocol does not allow; it counts as failed."""


class FailureLog:
    """Failures by rank, judged by `rule`. `names` are the boards' names for people, by rank."""

    def __init__(self, rule: FailureRule) -> None:
        self._rule = rule
        self.names: dict[int, str] = {}
        self._failures: dict[int, BoardLostError] = {}

    def add(self, rank: int, why: str) -> None:
        """Record that a board has failed; the first reason stays."""
        name = self.names[rank]
        self.add_error(rank, BoardLostError(f"{name} is lost: {why}", board=name))

    def add_error(self, rank: int, error: BoardLostError) -> None:
        """Record a failure as the error to raise where it matters; the first stays."""
        self._failures.setdefault(rank, error)

    def remove(self, rank: int) -> None:
        """Forget a rank, its name and its failure."""
        self.names.pop(rank, None)
        self._failures.pop(rank, None)

    def concerning(self, ranks: Collection[int]) -> BoardLostError | None:
        """The first failure that concerns a board waiting for `ranks`, by the rule."""
        for rank, error in self._failures.items():
            if self._rule(rank, ranks):
                return error
        return None

    def fault(self, rank: int, what: str) -> BoardFaultError:
        """The error to raise where a board breaks the protocol."""
        name = self.names[rank]
        return BoardFaultError(
            f"{name} {what}", "update picoedge there; if that is not it, revoke its key", board=name
        )


class LinkState(Enum):
    """How far a pair has come."""

    EXPECTED = "expected"  # its key may connect
    GREETED = "greeted"  # key, rank and epoch are proven; the transport is being chosen
    OPEN = "open"
    ENDED = "ended"


def choose_transport(
    wish: TransportChoice,
    stream_is_open: bool,
    stream_s: Sequence[float],
    zeromq_s: Sequence[float],
) -> Transport:
    """The transport of a pair, by its round trips over both, in seconds.

    The quickest of each count: other work on the boards can only add to a round trip. ZeroMQ where
    the stream cannot be opened; the stream where a timing is incomplete.
    """
    if wish != "auto":
        return wish
    if not stream_is_open:
        return "zeromq"
    if min(len(stream_s), len(zeromq_s)) < ROUNDS:
        return "stream"
    return "zeromq" if min(zeromq_s) < min(stream_s) else "stream"


@dataclass(frozen=True)
class LinkSettings:
    """What this board's end of every link has in common."""

    rank: int
    epoch: int
    most_bytes: int  # of a message
    wish: TransportChoice
    version: int  # of the group's headers
    limits: Limits
    busy_s: float  # how long a board may be about other work before it reads its links

    @cached_property
    def ciphers(self) -> Cipher:
        """The ciphers to offer, measured when the first board connects: that takes 7 MB.

        Where ZeroMQ carries all messages, any board accepts the one that every board has.
        """
        unused = self.wish == "zeromq" and self.version > 1
        return Cipher.CHACHA20_POLY1305 if unused else ciphers()

    def message(self, step: int, body: bytes | memoryview = b"") -> bytes:
        """A message of the handshake; HELLO is the first on any connection."""
        header = Header(Kind.HELLO, self.epoch, step, extra=self.rank)
        return b"".join((pack_prefix(header, self.version), body))


class PeerLink:
    """This board's end of the link to `rank`, from expected to ended.

    `proven` is the connection over CURVE; `connection` carries messages once the state is OPEN.
    """

    def __init__(self, own: LinkSettings, rank: int, key: str) -> None:
        self.own, self.rank, self.key = own, rank, key
        self.state = LinkState.EXPECTED
        self.proven: Connection | None = None
        self.connection: Connection | None = None
        self.unreachable = ""  # why the stream could not be opened, where ZeroMQ stands in for it
        self._host = ""  # of the board, where this end connects
        self._give_ticket: Callable[[Cipher], Ticket] | None = None  # where it listens
        self._stream: SealedStream | None = None
        self._is_stream_ready = False
        self._is_chosen = False  # by CHOICE, or because nothing is to be chosen
        self._deadline: float | None = None
        self._round_trips: dict[Transport, list[float]] = {"stream": [], "zeromq": []}
        self._probed: Connection | None = None  # the connection of the probe on its way
        self._sent_at = 0.0
        self._is_late = False  # time is up: decide once the probe is back

    # -- beginning -----------------------------------------------------------------------------

    def connects(self, proven: Connection, host: str) -> None:
        """Say hello over a connection to the board at `host`."""
        self.proven, self._host = proven, host
        carries = 0 if self.own.wish == "stream" else ZEROMQ_BIT
        proven.send(self.own.message(HELLO) + bytes([self.own.ciphers | carries]))

    def listens(self, proven: Connection, give_ticket: Callable[[Cipher], Ticket] | None) -> None:
        """The board has connected; without `give_ticket` only ZeroMQ can carry messages."""
        self.proven, self._give_ticket = proven, give_ticket

    def accept(self, stream: SealedStream) -> None:
        """The board has shown its ticket."""
        if self.state is LinkState.GREETED and self._stream is None:
            self._stream, self._is_stream_ready = stream, True
            if self._is_chosen:
                self._open(stream)
        else:
            stream.close()

    # -- the poll ------------------------------------------------------------------------------

    def items(self) -> Items:
        """What to poll while the transport is being chosen."""
        if self.state not in (LinkState.EXPECTED, LinkState.GREETED) or self.proven is None:
            return ()
        files = list(self.proven.items())
        if self._stream is not None:
            files += self._stream.items(sending=not self._is_stream_ready)
        return files

    def due(self) -> float | None:
        """When `advance` must be called at the latest (time.monotonic)."""
        return self._deadline if self.state is LinkState.GREETED else None

    def advance(self) -> bool:
        """Take in what has come; True where that was something.

        Raises ProtocolError for a message out of order, ConnectionEnded for a link that ended.
        """
        moved = self._read(self.proven)
        if self._stream is not None and self.state is LinkState.GREETED:
            try:
                moved |= self._read(self._stream) if self._is_stream_ready else self._enter()
            except ConnectionEnded as error:
                self._stream_failed(str(error))
        due = self.due()
        if due is not None and time.monotonic() >= due:
            self._time_is_up()
        return moved

    def _read(self, source: Connection | None) -> bool:
        moved = False
        while self.state in (LinkState.EXPECTED, LinkState.GREETED) and source is not None:
            if not source.flush() or (message := source.take()) is None:
                break
            self._handle(source, message)
            moved = True
        return moved

    def _handle(self, source: Connection, message: memoryview) -> None:
        body = message[PREFIX_BYTES:]
        header = unpack(message[:PREFIX_BYTES], versions=(self.own.version,))
        step = HELLO if self.state is LinkState.EXPECTED else header.sequence
        if header != Header(Kind.HELLO, self.own.epoch, step, extra=self.rank):
            raise ProtocolError(f"{header}, in epoch {self.own.epoch}")
        if self.state is LinkState.EXPECTED:
            self.state = LinkState.GREETED
            self._deadline = time.monotonic() + self.own.busy_s
            if self._host:
                self._answered(bytes(body))
            else:
                self._answer(bytes(body))
        elif step == PROBE and not self._is_chosen:
            if self._host:
                self._came_back(source)
            else:
                source.send(self.own.message(PROBE, body))
        elif step == CHOICE and not self._is_chosen and not self._host:
            self._open(source)
        else:
            raise ProtocolError(f"{header} after its hello")

    # -- the listening end ---------------------------------------------------------------------

    def _answer(self, body: bytes) -> None:
        assert self.proven is not None
        offered = ciphers_from(body)
        carries = bool(body[0] & ZEROMQ_BIT) and self.own.wish != "stream"
        self._is_chosen = not carries
        if self._give_ticket is not None:
            ticket = self._give_ticket(common(self.own.ciphers, offered)).to_bytes()
        elif carries:
            ticket = b""
        else:
            raise ProtocolError("a hello of a board that cannot use ZeroMQ for messages")
        self.proven.send(self.own.message(HELLO) + ticket + (b"\1" if carries else b""))

    # -- the connecting end --------------------------------------------------------------------

    def _answered(self, body: bytes) -> None:
        carries = self.own.wish != "stream" and len(body) in (1, 1 + TICKET_BYTES)
        if carries and (self.own.wish == "zeromq" or len(body) == 1):
            return self._choose(self.proven)
        ticket = Ticket.from_bytes(body[:TICKET_BYTES] if carries else body)
        self._is_chosen, limits = not carries, self.own.limits
        wait_s = limits.stream_open_s if carries else limits.stream_only_s
        self._deadline = time.monotonic() + wait_s
        try:
            self._stream = ticket.connect(self._host, self.own.most_bytes)
        except OSError as error:
            self._stream_failed(error.strerror or str(error))

    def _enter(self) -> bool:
        """The stream is connected once it has taken the ticket's name."""
        assert self._stream is not None
        if not self._stream.flush():
            return False
        self._is_stream_ready = True
        self._stream.send(self.own.message(HELLO))
        if self._is_chosen:
            self._open(self._stream)
        else:
            self._deadline = time.monotonic() + self.own.limits.probe_s
            self._probe()
        return True

    def _stream_failed(self, why: str) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._is_chosen:
            raise ConnectionEnded(f"its stream cannot be reached: {why}")
        if self._host:  # the other end learns it by the choice
            self.unreachable = why
            self._decide()

    def _time_is_up(self) -> None:
        if self._is_late or not self._host:
            raise ConnectionEnded("it greeted, and did not finish joining")
        if self._is_stream_ready:
            self._decide()
        else:
            self._stream_failed("timed out")

    def _probe(self) -> None:
        """Send the next probe over the transport that has fewer round trips."""
        trips = self._round_trips
        behind = len(trips["stream"]) <= len(trips["zeromq"])
        self._probed = connection = self._stream if behind else self.proven
        assert connection is not None
        size = min(PROBE_BYTES, self.own.most_bytes - PREFIX_BYTES)
        message = self.own.message(PROBE, bytes(size))
        self._sent_at = time.perf_counter()
        connection.send(message)

    def _came_back(self, source: Connection) -> None:
        if source is not self._probed:
            raise ProtocolError("a probe that was not sent")
        self._round_trips[source.transport].append(time.perf_counter() - self._sent_at)
        self._probed = None
        if self._is_late or min(map(len, self._round_trips.values())) > ROUNDS:
            self._decide()
        else:
            self._probe()

    def _decide(self) -> None:
        stream_s, zeromq_s = (self._round_trips[each][1:] for each in ("stream", "zeromq"))
        is_open = self._stream is not None
        kept = choose_transport(self.own.wish, is_open, stream_s, zeromq_s)
        connection = self._stream if kept == "stream" else self.proven
        if connection is self._probed:  # its probe would be taken for a message
            self._is_late, self._deadline = True, time.monotonic() + self.own.busy_s
        else:
            self._choose(connection)

    def _choose(self, connection: Connection | None) -> None:
        assert connection is not None
        connection.send(self.own.message(CHOICE))
        self._open(connection)

    # -- open, and the end ---------------------------------------------------------------------

    def _open(self, connection: Connection) -> None:
        if self._stream is not None and self._stream is not connection:
            self._stream.close()
        self.connection, self.state = connection, LinkState.OPEN
        self._is_chosen, self._deadline = True, None

    def end(self) -> None:
        """Close what carries messages. Idempotent."""
        self.state = LinkState.ENDED
        for each in {self._stream, self.connection} - {None, self.proven}:
            each.close()  # type: ignore[union-attr]  # None is taken away
        if self.proven is not None:
            self.proven.close()
