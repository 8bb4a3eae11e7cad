"""What a donor can do to a board that pulls, and writes for long: be banned."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq
from hostile_floods import Hostile, check, line_of, victim

from picoedge.mesh.addresses import Address
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transfer.donor_client import DonorClient
from picoedge.mesh.transport import curve
from picoedge.mesh.transport.connection import InboxGuard

PULLING = """
import zmq
from picoedge.errors import ProtocolError
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transfer.donor_client import DonorClient
from picoedge.mesh.transport.connection import InboxGuard

secret, server, address = sys.argv[1:]
guard = InboxGuard()
donor = DonorClient(
    zmq.Context(), KeyPair.of_secret(secret), parse_address(address), server, guard
)
donor.ask_offer("0" * 64, 0.0)
assert donor.socket.poll(20_000)
grown = idle()
try:
    list(donor.receive())
    print(grown, "went on")
except ProtocolError as error:
    print(grown, error)
guard.close()
donor.close()
"""


@contextmanager
def hostile() -> Iterator[tuple[Hostile, Any, int]]:
    """A hostile donor, a board that has asked it, and the descriptor of its connection."""
    context: zmq.Context[Any] = zmq.Context()
    mine, its = KeyPair.new(), KeyPair.new()
    socket = context.socket(zmq.ROUTER)
    monitor = socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
    authenticator = curve.Authenticator(context, lambda key: True)
    try:
        curve.configure_server(socket, mine, curve.SocketBounds(messages=10_000, heartbeats=False))
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        with victim(PULLING, its.secret, mine.public, f"127.0.0.1:{port}") as pulling:
            authenticator.answer()
            route = socket.recv_multipart()[0]
            socket.send_multipart([route, b"first"])
            assert line_of(pulling) == "idle"
            [(_, file)] = curve.events(monitor)
            yield Hostile(socket, monitor, [route]), pulling, file
    finally:
        authenticator.close()
        context.destroy(linger=0)


@pytest.mark.slow
def test_a_filled_queue_that_is_cut_does_not_end_a_board() -> None:
    """libzmq aborts a process with a full queue: see `SocketBounds`."""
    with hostile() as (peer, pulling, file):
        peer.end(file, b"x")
        check(pulling, "an answer of 1 frames")


@pytest.mark.slow
def test_a_flood_ends_the_connection_and_not_the_memory_of_a_board() -> None:
    with hostile() as (peer, pulling, _):
        peer.flood(bytes(100_000))
        check(pulling, "an answer of 1 frames")


def test_a_donor_that_was_not_there_or_restarts_is_asked_again() -> None:
    context: Any = zmq.Context()
    keys, guard = KeyPair.new(), InboxGuard()
    authenticator = curve.Authenticator(context, lambda key: True)
    probe = context.socket(zmq.ROUTER)
    port = probe.bind_to_random_port("tcp://127.0.0.1")
    probe.unbind(f"tcp://127.0.0.1:{port}")
    probe.close(0)
    donor = DonorClient(context, KeyPair.new(), Address("127.0.0.1", port), keys.public, guard)
    try:
        for _ in range(2):
            threading.Event().wait(0.3)  # refused by now, more than once
            list(donor.receive())
            with context.socket(zmq.ROUTER) as daemon:
                curve.configure_server(daemon, keys, curve.SocketBounds())
                daemon.bind(f"tcp://127.0.0.1:{port}")
                while not daemon.poll(20):
                    donor.ask_offer("0" * 64, 0.0)
                    if authenticator.socket.poll(0):
                        authenticator.answer()
                daemon.unbind(f"tcp://127.0.0.1:{port}")
    finally:
        guard.close()
        donor.close()
        authenticator.close()
        context.destroy(linger=0)
