"""What a board of the group can do to one that computes and reads nothing: end the link."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq
from group_links import HELLO, HUBS_CHOICE, HUBS_HELLO, note
from hostile_floods import Hostile, check, line_of, victim
from mesh_sums import EPOCH, LOOPBACK

from picoedge.mesh.group.peer_link import ZEROMQ_BIT
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transport import curve

MEMBER = f"""
import zmq
from picoedge.errors import BoardLostError
from picoedge.jobs.group_links import hub_rule
from picoedge.mesh.group.channel import ArrayLimits
from picoedge.mesh.group.links import Links
from picoedge.mesh.identity.identity import KeyPair

rank, secret, other, address = int(sys.argv[1]), *sys.argv[2:]
keys, bounds = KeyPair.of_secret(secret), ArrayLimits(rows=4, width=64).socket_bounds()
links = Links(
    zmq.Context(), keys, rank, {EPOCH}, bounds, rule=hub_rule(rank), transport="zeromq"
)
links.add(1 - rank, other, "other")
if rank:
    print(links.listen("{LOOPBACK}"), flush=True)
else:
    links.connect(1, address)
links.open(20)
grown = idle()
try:
    while True:
        links.receive((1 - rank,), 20)
except BoardLostError as error:
    print(grown, "lost")
links.close()
"""
BOUNDS = curve.SocketBounds(messages=10_000, heartbeats=False)
WATCHED = zmq.EVENT_CONNECTED | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED


@contextmanager
def hostile(rank: int) -> Iterator[tuple[Hostile, Any, int]]:
    """A hostile board, the member of that rank that has opened its link, and a descriptor."""
    context: zmq.Context[Any] = zmq.Context()
    mine, its = KeyPair.new(), KeyPair.new()
    socket = context.socket(zmq.DEALER if rank else zmq.ROUTER)
    monitor = socket.get_monitor_socket(WATCHED)
    socket.setsockopt(zmq.RECONNECT_IVL, -1)
    authenticator = curve.Authenticator(context, lambda key: True)
    try:
        address = ""
        if not rank:
            curve.configure_server(socket, mine, BOUNDS)
            address = f"{LOOPBACK}:{socket.bind_to_random_port(f'tcp://{LOOPBACK}')}"
        with victim(MEMBER, rank, its.secret, mine.public, address) as member:
            route: list[bytes] = []
            if rank:
                curve.configure_client(socket, mine, its.public, BOUNDS)
                socket.connect(f"tcp://{LOOPBACK}:{line_of(member)}")
                socket.send(HUBS_HELLO + bytes([1 | ZEROMQ_BIT]))
                assert socket.recv()[len(HUBS_HELLO) :] == b"\1"
                socket.send(HUBS_CHOICE)
            else:
                authenticator.answer()
                route = [socket.recv_multipart()[0]]
                socket.send_multipart([*route, HELLO + b"\1"])
                assert socket.recv_multipart() == [*route, HUBS_CHOICE]
            assert line_of(member) == "idle"
            [(_, file)] = curve.events(monitor)
            yield Hostile(socket, monitor, route), member, file
    finally:
        authenticator.close()
        context.destroy(linger=0)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1], ids=["connects", "listens"])
def test_a_filled_queue_that_is_cut_does_not_end_a_board(rank: int) -> None:
    """libzmq aborts a process with a full queue: see `SocketBounds`."""
    with hostile(rank) as (peer, member, file):
        peer.end(file, note())
        check(member, "lost")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1], ids=["connects", "listens"])
def test_a_flood_ends_the_link_and_not_the_memory_of_a_board(rank: int) -> None:
    with hostile(rank) as (peer, member, _):
        peer.flood(note(bytes(100_000)))
        check(member, "lost")
