"""Links of boards that a test opens or floods, and strangers that connect to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import zmq
from mesh_sums import EPOCH, LOOPBACK, Boards, boards, forward_pass

from picoedge.cluster.forward_pass import Stages, Tag
from picoedge.errors import BoardLostError
from picoedge.mesh.group.channel import ArrayLimits
from picoedge.mesh.group.links import Links
from picoedge.mesh.group.peer_link import CHOICE, TransportChoice
from picoedge.mesh.group.ticket_listener import TicketListener
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transport import curve
from picoedge.mesh.transport.frames import HUB, Dtype, Header, Kind, pack_prefix
from picoedge.mesh.transport.sealed_stream import Cipher, SealedStream

ROWS = ArrayLimits(rows=4, width=64)
TRANSPORTS: tuple[TransportChoice, ...] = ("stream", "zeromq")
BOTH = Stages((0, 1), (0, 1), layers=1)
DETECT_S = 1.5


def opened(group: Boards) -> None:
    for outcome in group.each(lambda rank: group.links[rank].open(5)):
        assert outcome is None


def note(text: bytes = b"") -> bytes:
    return pack_prefix(Header(Kind.CONTROL, EPOCH)) + text


@contextmanager
def stranger(group: Boards, rank: int, keys: KeyPair) -> Iterator[Any]:
    """A socket that connects to a board of the group with these keys, perhaps not of the group."""
    context: zmq.Context[Any] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    curve.configure_client(dealer, keys, group.keys[rank].public, ROWS.socket_bounds())
    dealer.setsockopt(zmq.RECONNECT_IVL, -1)
    dealer.get_monitor_socket()
    dealer.connect(f"tcp://{LOOPBACK}:{group.ports[rank]}")
    try:
        yield dealer
    finally:
        context.destroy(linger=0)


def wait_until_refused(dealer: Any) -> None:
    from zmq.utils.monitor import recv_monitor_message

    events = dealer.get_monitor_socket()
    while events.poll(REFUSED_MS):
        event = recv_monitor_message(events)["event"]
        assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
        if event == zmq.EVENT_DISCONNECTED or event & ALL_FAILED:
            return
    pytest.fail("neither let in nor refused")


# Where keys are refused, or not looked at yet, some handshakes end by libzmq's own timer.
REFUSED_MS = 2 * curve.HANDSHAKE_MS


ALL_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class FaultyWorker:
    """A peer of rank 1 that the hub's first connection has let in, and that says what it likes."""

    def __init__(
        self, group: Boards, context: zmq.Context[Any], transport: TransportChoice
    ) -> None:
        self._transport = transport
        self._hub = group.links[HUB]
        self._streams: list[SealedStream] = []
        self._authenticator = curve.Authenticator(context, lambda key: True)
        self._router = context.socket(zmq.ROUTER)
        curve.configure_server(self._router, group.keys[1], curve.SocketBounds())
        port = self._router.bind_to_random_port(f"tcp://{LOOPBACK}")
        self._hub.connect(1, f"{LOOPBACK}:{port}")
        self._authenticator.answer()
        self._who, *hello = self._router.recv_multipart()
        assert len(hello) == 1
        self.listener = TicketListener(LOOPBACK, ROWS.message_bytes + 200)

    def greet(self, *frames: bytes) -> None:
        """Answer over the first connection with these instead of the expected messages."""
        self._router.send_multipart([self._who, *frames])

    def close(self) -> None:
        self._authenticator.close()
        self.listener.close()
        for stream in self._streams:
            stream.close()

    def open(self) -> Callable[..., None]:
        """Be let in; gives what sends messages over the link."""
        if self._transport == "zeromq":
            self.greet(HELLO + b"\1")
            self._hub.open(5)
            assert self._router.recv_multipart() == [self._who, HUBS_CHOICE]
        else:
            self.greet(
                HELLO + self.listener.ticket(HUB, HUBS_HELLO, Cipher.CHACHA20_POLY1305).to_bytes()
            )
            self._hub.open(5)
            [(rank, stream)] = self.listener.accepted()
            assert rank == HUB
            self._streams.append(stream)

        def send(*messages: bytes) -> None:
            for message in messages:
                if self._streams:
                    assert self._streams[0].send(message)
                else:
                    self.greet(message)

        return send


@contextmanager
def faulty_worker(group: Boards, transport: TransportChoice) -> Iterator[FaultyWorker]:
    context: zmq.Context[Any] = zmq.Context()
    made = FaultyWorker(group, context, transport)
    try:
        yield made
    finally:
        made.close()
        context.destroy(linger=0)


@contextmanager
def faulty_pair(transport: TransportChoice) -> Iterator[tuple[Boards, FaultyWorker]]:
    """A hub whose links are not open yet, and the worker that a test has misbehave."""
    with (
        boards(2, "star", ROWS, connect=False, transport=transport) as group,
        faulty_worker(group, transport) as worker,
    ):
        yield group, worker


def hub_of(group: Boards) -> Any:
    board = forward_pass(group.links[0], "star", 2, BOTH, ROWS)
    board.input(np.zeros((1, 64), np.float32), 0)
    return board


def message(header: Header, nbytes: int = 512, padding: bytes = b"") -> bytes:
    prefix = pack_prefix(header)
    return prefix[: len(prefix) - len(padding)] + padding + bytes(nbytes)


def input_header(
    sequence: int, dtype: Dtype, shape: tuple[int, ...] = (), extra: int = 0
) -> Header:
    return Header(Kind.DATA, EPOCH, sequence, dtype, shape, extra, tag=Tag.INPUT)


HELLO = message(Header(Kind.HELLO, EPOCH, extra=1), 0)
HUBS_HELLO = message(Header(Kind.HELLO, EPOCH, extra=HUB), 0)
HUBS_CHOICE = message(Header(Kind.HELLO, EPOCH, CHOICE, extra=HUB), 0)


def drain(links: Links, rank: int) -> None:
    while True:
        links.receive((rank,), 5)


def flood(links: Links, rank: int) -> None:
    while True:
        links.send(rank, note(bytes(512)))


def flood_until_lost(links: Links, rank: int) -> None:
    with pytest.raises(BoardLostError):
        flood(links, rank)
