"""A daemon passes bytes between its port and its worker: all, bounded, for its group only."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mesh_nodes import Running, found, fresh_context, running

from picoedge.daemon import relay as relays
from picoedge.daemon.relay import Relays
from picoedge.errors import BoardLostError, MeshError
from picoedge.jobs.group_links import is_reachable
from picoedge.jobs.relay import Relay, new_endpoint

WAIT_S = 20.0
MUCH = os.urandom(3 << 20)  # more than all buffers on the way hold


@pytest.fixture
def ada(tmp_path: Path) -> Iterator[Any]:
    """A daemon, and its worker's socket; "bob" is of the group, "eve" of the cluster only."""
    first, second, third = found(tmp_path, "ada", "bob", "eve")
    made: Any = Running(first)
    made.bob, made.eve = second.keys, third.keys
    endpoint = new_endpoint()
    with socket.socket(socket.AF_UNIX) as worker:
        worker.bind(f"\0{endpoint}")
        worker.listen()
        worker.settimeout(WAIT_S)
        made.worker = worker
        made.relays = Relays(made.node.rpc, lambda key: endpoint if key == made.bob.public else "")
        with running(made):
            yield made


def opened(ada: Any) -> tuple[Relay, socket.socket, socket.socket]:
    """A relay, and both ends of it."""
    relay = Relay(ada.bob, ada.address, ada.key, "ada")
    near = socket.socket(socket.AF_UNIX)
    near.settimeout(WAIT_S)
    near.connect("\0" + relay.endpoint.removeprefix("ipc://@"))
    far, _ = ada.worker.accept()
    far.settimeout(WAIT_S)
    return relay, near, far


def received(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (more := connection.recv(1 << 20)):
        data += more
    return bytes(data)


def test_all_bytes_arrive_both_ways_at_once(ada: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "BURST_BYTES", 1 << 10)  # most of it waits for its turn
    relay, near, far = opened(ada)
    with near, far:
        senders = [threading.Thread(target=each.sendall, args=(MUCH,)) for each in (near, far)]
        takers = [
            threading.Thread(target=lambda each=each: got.append(received(each, len(MUCH))))  # type: ignore[misc]
            for each in (near, far)
        ]
        got: list[bytes] = []
        for thread in (*senders, *takers):
            thread.start()
        for thread in (*senders, *takers):
            thread.join(WAIT_S)
        assert got == [MUCH, MUCH]
        assert ada.do(lambda: bool(ada.relays))
        relay.close()


def test_a_board_that_takes_nothing_stops_the_worker_and_not_the_daemon(ada: Any) -> None:
    relay, near, far = opened(ada)
    with near, far, fresh_context() as context:
        far.settimeout(0.5)
        sent = 0
        with suppress(TimeoutError):
            while sent < 1 << 26:
                sent += far.send(bytes(1 << 16))
        assert sent < 4 << 20
        with ada.client(context, ada.bob) as client:
            assert "roster" in client.ask("roster")
        assert received(near, sent) == bytes(sent)
    relay.close()


def test_each_end_learns_that_the_other_has_left(ada: Any) -> None:
    relay, near, far = opened(ada)
    with near:
        far.sendall(b"last words")
        far.close()
        assert received(near, 100) == b"last words"
    relay.close()
    relay, near, far = opened(ada)
    near.close()
    relay.close()
    with far:
        assert far.recv(1) == b""
    ada.wait(lambda: not ada.relays)


def test_only_boards_of_the_group_have_a_relay(ada: Any) -> None:
    with pytest.raises(MeshError, match="no worker of yours"):
        Relay(ada.eve, ada.address, ada.key, "ada")
    with fresh_context() as context:
        with ada.client(context, ada.eve) as client, pytest.raises(MeshError, match="closed"):
            client.ask("relay-send", {"data": "", "taken": 0})
        for data, taken in ((5, 0), ("%", 0), ("", 7), ("", -1), ("A" * (1 << 18), 0)):
            with ada.client(context, ada.bob) as client:
                client.ask("relay-open")
                ada.worker.accept()[0].close()
                with pytest.raises((BoardLostError, MeshError)):
                    client.ask("relay-send", {"data": data, "taken": taken}, 2.0)


def test_a_port_is_reachable_where_something_accepts_connections() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert not is_reachable(address)
        listener.listen()
        assert is_reachable(address)
