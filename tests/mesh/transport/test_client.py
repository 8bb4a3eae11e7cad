"""What a daemon of a let-in board can do to a client that reads nothing: end the connection."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq

from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transport.curve import (
    Authenticator,
    SocketBounds,
    configure_server,
    shut_down,
)
from picoedge.mesh.transport.messages import control

# A hub: it asks once, waits for its user, and then reads what has come meanwhile.
HUB = """
import sys, time, zmq
from picoedge.errors import BoardLostError
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transport.client import Client

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

secret, server, address, news = sys.argv[1:]
keys, check = KeyPair.of_secret(secret), Client._check
if news == "late":  # the answer is there before the news of the connection is read
    Client._check = lambda client: None
with Client(zmq.Context(), keys, parse_address(address), server, "b1") as client:
    client.ask("roster", timeout_s=20)
    Client._check = check
    before = anonymous()
    time.sleep(2.0)
    grown, end_s = anonymous() - before, time.monotonic() + 20
    try:
        while time.monotonic() < end_s:
            client.notifications()
            client.monitor.poll(10)
    except BoardLostError:
        print(grown)
"""


@contextmanager
def hub_of(
    daemon: Any, auth: Authenticator, keys: KeyPair, news: str = "read"
) -> Iterator[tuple[Any, bytes, int]]:
    """A hub that has been answered: its process, its route, and its connection's descriptor."""
    hub = KeyPair.new()
    port = daemon.bind_to_random_port("tcp://127.0.0.1")
    process = subprocess.Popen(
        [sys.executable, "-c", HUB, hub.secret, keys.public, f"127.0.0.1:{port}", news],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not daemon.poll(10):
            if auth.socket.poll(0):
                auth.answer()
        route = daemon.recv_multipart(copy=False)[0]
        daemon.send_multipart([route.bytes, *control("reply", {"id": 1}, 1)])
        yield process, route.bytes, int(str(route.get("__fd")))
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def daemon() -> Iterator[tuple[Any, Authenticator, KeyPair]]:
    """A ROUTER of a board that does what it likes."""
    context: Any = zmq.Context()
    keys, auth = KeyPair.new(), Authenticator(context, lambda key: True)
    socket = context.socket(zmq.ROUTER)
    configure_server(socket, keys, SocketBounds(messages=10_000, heartbeats=False))
    yield socket, auth, keys
    socket.close(0)
    auth.close()
    context.term()


@pytest.mark.slow
@pytest.mark.parametrize("heartbeats", [False, True])
def test_a_filled_queue_that_is_cut_does_not_end_a_hub(
    daemon: tuple[Any, Authenticator, KeyPair], heartbeats: bool
) -> None:
    """libzmq aborts a process with a full queue: see `SocketBounds`."""
    socket, auth, keys = daemon
    if heartbeats:
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 60_000)
    with hub_of(socket, auth, keys) as (process, route, file):
        for number in range(2000):
            socket.send_multipart([route, *control("x", {"n": number}, 1)])
        threading.Event().wait(0.4)  # a heartbeat falls due on the connection that is full
        shut_down(file)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
        assert int(out) < 16 << 20


@pytest.mark.slow
@pytest.mark.parametrize("news", ["read", "late"])
def test_a_flood_ends_the_connection_and_not_the_memory_of_a_hub(
    daemon: tuple[Any, Authenticator, KeyPair], news: str
) -> None:
    socket, auth, keys = daemon
    with hub_of(socket, auth, keys, news) as (process, route, _):
        frames = [route, *control("x", {"text": "x" * 900_000}, 1)]
        while process.poll() is None:
            if auth.socket.poll(0):
                auth.answer()
            if socket.poll(10, zmq.POLLOUT):
                socket.send_multipart(frames)
            threading.Event().wait(0.01)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
        assert int(out) < 64 << 20
