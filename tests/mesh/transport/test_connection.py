"""Connections over ZeroMQ: what the poll of one peer must not sleep through."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import zmq

from picoedge.mesh.transport.connection import DealerConnection, Inbox, RouterConnection

Ends = tuple[dict[bytes, RouterConnection], dict[bytes, DealerConnection]]
POLL_MS = 5000  # far longer than a poll that finds something


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Two peers of one ROUTER, and their own ends."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.bind("inproc://ends")
    peers: dict[bytes, RouterConnection] = {}
    dealers = {}

    def pump() -> None:
        while router.poll(0):
            sender, *frames = router.recv_multipart(copy=False)
            peers[sender.bytes].put(frames)

    for name in (b"one", b"two"):
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.ROUTING_ID, name)
        dealer.connect("inproc://ends")
        dealers[name] = DealerConnection(dealer, Inbox(0))
        peers[name] = RouterConnection(router, name, pump, 16, Inbox(0))
    yield peers, dealers
    context.destroy(linger=0)


def test_a_message_that_was_read_for_another_peer_is_not_slept_through(ends: Ends) -> None:
    (one, two), (dealer, _) = ends[0].values(), ends[1].values()
    assert one.take() is None
    assert dealer.send(b"first")
    assert two.take() is None  # and the message of the other peer is off the socket
    assert zmq.zmq_poll([*one.items(), *two.items()], POLL_MS)
    assert one.take() == b"first"
    assert not zmq.zmq_poll([*one.items(), *two.items()], 0)


def test_a_credit_that_was_read_for_another_peer_is_not_slept_through(ends: Ends) -> None:
    (one, two), (dealer, _) = ends[0].values(), ends[1].values()
    assert dealer.send(b"hello")  # a ROUTER sends to peers that it has heard
    while (first := one.take()) is None:
        zmq.zmq_poll([*one.items()], POLL_MS)
    assert first == b"hello"
    while one.send(b"message"):
        pass  # until the window is full
    _take_all(dealer.take)
    assert two.take() is None
    assert zmq.zmq_poll([*one.items(), *two.items()], POLL_MS)
    assert one.take() is None  # a credit is no message
    assert one.flush()


def _take_all(take: Callable[[], memoryview | None]) -> None:
    while take() is not None:
        pass
