"""The link of one pair of boards, which proves rank and epoch and chooses a transport.

    connects                                        listens
    HELLO, its ciphers                    ->                               over CURVE
                                          <-        HELLO, a ticket        over CURVE
    the ticket's name, HELLO              ->                               over a sealed stream

Where both ends may carry messages over ZeroMQ (a bit beside the ciphers, a byte behind the ticket):

    PROBE, 16 KB                          ->  <-    the same               over either, in turn
    CHOICE                                ->                               over the chosen one

The kind is HELLO throughout, and `sequence` says which step it is. A board of the first wire
version knows neither the bit nor the byte: its messages travel over the stream.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeVar

from picoedge.errors import BoardLostError, ProtocolError
from picoedge.mesh.transport.connection import Connection, ConnectionEnded, Items, Transport
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

TransportChoice = Literal["auto", "zeromq", "stream"]

HELLO, PROBE, CHOICE = range(3)  # steps, in `sequence`
ZEROMQ_BIT = 0x80  # beside the ciphers: messages may travel over ZeroMQ
PROBE_BYTES = 16 << 10  # the sum of one token, of 2,048 values in f64
ROUNDS = 5  # timed; one more before them, which finds the other board asleep
_T = TypeVar("_T")
Steps = Generator[None, None, _T]  # of the handshake: it yields until more has come
GiveTicket = Callable[[Cipher], Ticket]
# Does the failure of this rank concern a board that waits for these ranks?
FailureRule = Callable[[int, Collection[int]], bool]


class BoardFaultError(BoardLostError, ProtocolError):
    """A board of the group sent what the protocol does not allow; it counts as failed."""


class LinkState(Enum):
    """Progress of a pair of boards towards an open link."""

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
    """This board's settings, common to its end of every link."""

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

        Where ZeroMQ carries all messages, any board accepts the cipher that every board has.
        """
        unused = self.wish == "zeromq" and self.version > 1
        return Cipher.CHACHA20_POLY1305 if unused else ciphers()

    def message(self, step: int, body: bytes | memoryview = b"") -> bytes:
        """A message of the handshake; HELLO is the first on any connection."""
        header = Header(Kind.HELLO, self.epoch, step, extra=self.rank)
        return b"".join((pack_prefix(header, self.version), body))


class PeerLink:
    """This board's end of the link to `rank`, from expected to ended; `name` is for people.

    `proven` is the connection over CURVE; `connection` carries messages once the state is OPEN;
    `early` are messages that were read before they were due; `unreachable` says why the stream
    could not be opened, where ZeroMQ stands in for it.
    """

    def __init__(self, own: LinkSettings, rank: int, key: str, name: str) -> None:
        self.own, self.rank, self.key, self.name = own, rank, key, name
        self.state = LinkState.EXPECTED
        self.proven: Connection | None = None
        self.connection: Connection | None = None
        self.early: deque[bytes] = deque()
        self.unreachable = ""
        self._handshake: Steps[Connection] | None = None
        self._marked_port = 0  # of the daemon that passes the stream on, if any
        self._deadline: float | None = None
        self._stream: SealedStream | None = None
        self._is_stream_only = False  # where it listens: nothing is to be chosen
        self._round_trips: dict[Transport, list[float]] = {"stream": [], "zeromq": []}
        self._probed: Connection | None = None  # the connection of the probe on its way
        self._probed_at = 0.0  # when it was sent

    def connects(self, proven: Connection, host: str, marked_port: int = 0) -> None:
        """Say hello over a connection to the board at `host`.

        `marked_port`: a port there where its daemon passes streams on to it.
        """
        self._marked_port = marked_port
        self.proven, self._handshake = proven, self._connect(proven, host)
        self.advance()

    def listens(self, proven: Connection, give_ticket: GiveTicket | None) -> None:
        """The board has connected; without `give_ticket` only ZeroMQ can carry messages."""
        self.proven, self._handshake = proven, self._listen(proven, give_ticket)

    def accept(self, stream: SealedStream) -> None:
        """The board has shown its ticket."""
        if self.state is not LinkState.GREETED or self._stream is not None:
            return stream.close()
        self._stream = stream
        if self._is_stream_only:
            self._open(stream)

    # -- the poll ------------------------------------------------------------------------------

    @property
    def is_joining(self) -> bool:
        """Whether the handshake is under way: poll `items`, and call `advance`."""
        return self._handshake is not None and self.state in (LinkState.EXPECTED, LinkState.GREETED)

    def items(self) -> Items:
        """Sockets to poll while the handshake is under way."""
        both = (self.proven, self._stream)
        return [item for each in both if each is not None for item in each.items()]

    def due(self) -> float | None:
        """The latest time to call `advance` at (time.monotonic)."""
        return self._deadline if self.state is LinkState.GREETED else None

    def advance(self) -> None:
        """Take in what has come.

        Raises ProtocolError for a message out of order, ConnectionEnded for a link that ended.
        """
        assert self._handshake is not None
        try:
            next(self._handshake)
        except StopIteration as finished:
            self._open(finished.value)
        except TimeoutError:
            raise ConnectionEnded("it greeted, and did not finish joining") from None

    # -- the handshake -------------------------------------------------------------------------

    def _listen(self, proven: Connection, give_ticket: GiveTicket | None) -> Steps[Connection]:
        """The listening end: it keeps the connection over which CHOICE comes."""
        body = yield from self._hello()
        offered = ciphers_from(body)
        is_choice = bool(body[0] & ZEROMQ_BIT) and self.own.wish != "stream"
        if not is_choice and give_ticket is None:
            raise ProtocolError("a hello of a board that cannot use ZeroMQ for messages")
        self._is_stream_only, ticket = not is_choice, b""
        if give_ticket is not None:
            ticket = give_ticket(common(self.own.ciphers, offered)).to_bytes()
        proven.send(self.own.message(HELLO) + ticket + (b"\1" if is_choice else b""))
        due = (PROBE, CHOICE) if is_choice else ()
        while True:
            try:
                source, step, probe = yield from self._receive(*due)
                if step == CHOICE:
                    return source
                source.send(self.own.message(PROBE, probe))
            except ConnectionEnded:
                if self._stream is None:
                    raise
                self._close_stream()  # the other end will choose

    def _connect(self, proven: Connection, host: str) -> Steps[Connection]:
        """The connecting end: it measures and chooses."""
        own, limits = self.own, self.own.limits
        carries = 0 if own.wish == "stream" else ZEROMQ_BIT
        proven.send(own.message(HELLO) + bytes([own.ciphers | carries]))
        body = yield from self._hello()
        is_choice = own.wish != "stream" and len(body) in (1, 1 + TICKET_BYTES)
        if is_choice and (own.wish == "zeromq" or len(body) == 1):
            proven.send(own.message(CHOICE))
            return proven
        ticket = Ticket.from_bytes(body[:TICKET_BYTES] if is_choice else body)
        wait_s = limits.stream_open_s if is_choice else limits.stream_only_s
        self._deadline = time.monotonic() + wait_s
        try:
            stream = yield from self._enter(ticket, host)
            if not is_choice:
                return stream
            yield from self._measure(stream, proven)
        except (ConnectionEnded, OSError) as error:
            why = getattr(error, "strerror", None) or str(error)
            if not is_choice:
                raise ConnectionEnded(f"its stream cannot be reached: {why}") from None
            self._close_stream()
            self.unreachable = why
        self._deadline = time.monotonic() + own.busy_s
        return (yield from self._choose(proven))

    def _hello(self) -> Steps[bytes]:
        """The body of the other end's hello."""
        _, _, body = yield from self._receive(HELLO)
        self.state = LinkState.GREETED
        self._deadline = time.monotonic() + self.own.busy_s
        return bytes(body)

    def _enter(self, ticket: Ticket, host: str) -> Steps[SealedStream]:
        """Connect the stream, which is connected once it has taken the ticket's name."""
        self._stream = stream = ticket.connect(host, self.own.most_bytes, self._marked_port)
        yield from self._until(lambda: self._next() or stream.flush() or None)
        stream.send(self.own.message(HELLO))
        return stream

    def _measure(self, *connections: Connection) -> Steps[None]:
        """Time probes over both connections, in turn, until the time is up."""
        self._deadline = time.monotonic() + self.own.limits.probe_s
        size = min(PROBE_BYTES, self.own.most_bytes - PREFIX_BYTES)
        probe = self.own.message(PROBE, bytes(size))
        with suppress(TimeoutError):
            for connection in connections * (1 + ROUNDS):
                self._probed, self._probed_at = connection, time.perf_counter()
                connection.send(probe)
                yield from self._probe_back()

    def _probe_back(self) -> Steps[None]:
        source, _, _ = yield from self._receive(PROBE)
        if source is not self._probed:
            raise ProtocolError("a probe that was not sent")
        self._round_trips[source.transport].append(time.perf_counter() - self._probed_at)
        self._probed = None

    def _choose(self, proven: Connection) -> Steps[Connection]:
        """Tell the other end the choice, over the transport without a probe in flight."""
        while True:
            stream_s, zeromq_s = (self._round_trips[each][1:] for each in ("stream", "zeromq"))
            is_open = self._stream is not None
            kept = choose_transport(self.own.wish, is_open, stream_s, zeromq_s)
            connection = self._stream if kept == "stream" and self._stream else proven
            try:
                if connection is not self._probed:
                    connection.send(self.own.message(CHOICE))
                    return connection
                yield from self._probe_back()
            except ConnectionEnded as error:
                if self._stream is None:
                    raise
                self.unreachable = str(error)
                self._close_stream()

    def _until(self, attempt: Callable[[], _T | None]) -> Steps[_T]:
        """The first result of `attempt` that is not None. Raises TimeoutError at the deadline."""
        while (result := attempt()) is None:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise TimeoutError("timed out")
            yield
        return result

    def _receive(self, *due: int) -> Steps[tuple[Connection, int, memoryview]]:
        """The next message, one of these steps: where it came from, its step, its body."""
        return self._until(lambda: self._next(*due))

    def _next(self, *due: int) -> tuple[Connection, int, memoryview] | None:
        for source in (self.proven, self._stream):
            if source is not None and source.flush() and (message := source.take()) is not None:
                header = unpack(message[:PREFIX_BYTES], versions=(self.own.version,))
                return source, self._step(header, due), message[PREFIX_BYTES:]
        return None

    def _step(self, header: Header, due: Collection[int]) -> int:
        step = HELLO if self.state is LinkState.EXPECTED else header.sequence
        if header != Header(Kind.HELLO, self.own.epoch, step, extra=self.rank):
            raise ProtocolError(f"{header}, in epoch {self.own.epoch}")
        if step not in due:
            raise ProtocolError(f"{header} after its hello")
        return step

    # -- open, and the end ---------------------------------------------------------------------

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open(self, connection: Connection) -> None:
        if connection is not self._stream:
            self._close_stream()
        self.connection, self.state = connection, LinkState.OPEN

    def end(self) -> None:
        """Close what carries messages. Idempotent."""
        self.state = LinkState.ENDED
        for each in (self._stream, self.connection, self.proven):
            if each is not None:
                each.close()
