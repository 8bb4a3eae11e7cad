"""A daemon passes bytes between its port and its worker: all, bounded, for its group only."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from mesh_nodes import Running, found, fresh_context, running

from picoedge.daemon.relay import Relays
from picoedge.errors import BoardLostError, MeshError
from picoedge.jobs.relay import Relay, new_endpoint
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits

WAIT_S = 20.0
MUCH = os.urandom(3 << 20)  # more than all buffers on the way hold


@pytest.fixture
def ada(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A daemon, and its worker's socket; "bob" is of the group, "eve" of the cluster only."""
    first, second, third = found(tmp_path, "ada", "bob", "eve")
    made: Any = Running(first, **getattr(request, "param", {}))
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
            made.do(made.relays.close)


def opened(ada: Any) -> tuple[Relay, socket.socket, socket.socket]:
    """A relay, and both ends of it."""
    relay = Relay(ada.bob, ada.address, ada.key, "ada")
    near = socket.socket(socket.AF_UNIX)
    near.settimeout(WAIT_S)
    near.connect("\0" + relay.endpoint.removeprefix("ipc://@"))
    far, _ = ada.worker.accept()
    far.settimeout(WAIT_S)
    return relay, near, far


def swallow(call: Callable[[bytes], object], data: bytes) -> None:
    with suppress(OSError):
        call(data)


def received(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (more := connection.recv(1 << 20)):
        data += more
    return bytes(data)


def until(ada: Any, holds: Callable[[], bool]) -> None:
    """Return as soon as something holds in the daemon."""
    end_s = time.monotonic() + WAIT_S
    while not ada.do(holds):
        assert time.monotonic() < end_s


def limited(**limits: Any) -> Any:
    """The daemon with other limits."""
    return pytest.mark.parametrize("ada", [{"limits": Limits(**limits)}], indirect=True, ids=[""])


@contextmanager
def worker_takes_nothing(ada: Any, near: socket.socket) -> Iterator[None]:
    """From when the worker's socket is full, and all on the way to it."""

    def fill() -> None:
        with suppress(OSError):
            while True:
                near.sendall(bytes(1 << 16))

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        until(ada, lambda: any(each.unsent for each in ada.relays._relays.values()))
        yield
    finally:
        near.shutdown(socket.SHUT_RDWR)
        thread.join(WAIT_S)


@limited(relay_burst_bytes=1 << 10)  # most of it waits for its turn
def test_all_bytes_arrive_both_ways_at_once(ada: Any) -> None:
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
    until(ada, lambda: not ada.relays)


def test_a_relay_is_closed_while_the_worker_takes_nothing(ada: Any) -> None:
    relay, near, far = opened(ada)
    with near, far, worker_takes_nothing(ada, near):
        began_s = time.monotonic()
        relay.close()
        assert time.monotonic() - began_s < 1.0
        until(ada, lambda: not ada.relays)


def test_a_relay_is_closed_while_the_hub_takes_nothing(ada: Any) -> None:
    relay, near, far = opened(ada)
    with near, far:
        sender = threading.Thread(target=lambda: swallow(far.sendall, bytes(1 << 23)))
        sender.start()
        window = DEFAULT_LIMITS.relay_window
        until(ada, lambda: any(e.sent - e.taken >= window for e in ada.relays._relays.values()))
        began_s = time.monotonic()
        relay.close()
        assert time.monotonic() - began_s < 1.0
        sender.join(WAIT_S)


def test_the_worker_is_heard_while_it_takes_nothing(ada: Any) -> None:
    relay, near, far = opened(ada)
    with near, far, worker_takes_nothing(ada, near):
        sender = threading.Thread(target=far.sendall, args=(MUCH,))
        sender.start()
        assert received(near, len(MUCH)) == MUCH
        sender.join(WAIT_S)
    relay.close()


def test_a_daemon_waits_for_a_worker_that_takes_nothing(
    ada: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    write = Relays._write
    monkeypatch.setattr(Relays, "_write", lambda *its: (writes.append(1), write(*its)))
    relay, near, far = opened(ada)
    with near, far, worker_takes_nothing(ada, near):
        before, beat = len(writes), ada.do(lambda: ada.node.peers._sequence)
        until(ada, lambda: ada.node.peers._sequence >= beat + 5)
        assert len(writes) == before
        relay.close()


def test_a_board_has_one_relay(ada: Any) -> None:
    relay, near, far = opened(ada)
    second, second_near, second_far = opened(ada)
    with near, far, second_near, second_far:
        assert near.recv(1) == far.recv(1) == b""
        second_near.sendall(b"well")
        assert received(second_far, 4) == b"well"
        assert ada.do(lambda: len(ada.relays._relays)) == 1
        relay.close()
        second.close()


def test_only_boards_of_the_group_have_a_relay(ada: Any) -> None:
    with pytest.raises(MeshError, match="no worker of yours"):
        Relay(ada.eve, ada.address, ada.key, "ada")
    with (
        fresh_context() as context,
        ada.client(context, ada.eve) as client,
        pytest.raises(MeshError, match="closed"),
    ):
        client.ask("relay-send", {"data": "", "taken": 0})


HOSTILE: list[tuple[Any, Any, str]] = [
    (5, 0, "data"),
    ("%", 0, "not base64"),
    ("A", 0, "not base64"),
    ("", 7, "taken"),
    ("", -1, "taken"),
    ("", None, "taken"),
    ("A" * (1 << 18), 0, "chunk of 196608 bytes"),
]


@pytest.mark.parametrize(("data", "taken", "why"), HOSTILE)
def test_a_board_that_sends_nonsense_is_dropped(ada: Any, data: Any, taken: Any, why: str) -> None:
    with fresh_context() as context, ada.client(context, ada.bob) as client:
        client.ask("relay-open")
        with ada.worker.accept()[0]:
            assert client.ask("relay-send", {"data": "", "taken": 0}).keys() == {"id"}
            with pytest.raises(BoardLostError, match="its connection ended"):
                client.ask("relay-send", {"data": data, "taken": taken})
        assert any("dropped bob" in line and why in line for line in ada.lines), ada.lines
        until(ada, lambda: not ada.relays)


@limited(relay_burst_bytes=1, relay_bytes_per_s=1)
def test_a_board_that_does_not_wait_is_dropped(ada: Any) -> None:
    with fresh_context() as context, ada.client(context, ada.bob) as client:
        client.ask("relay-open")
        with ada.worker.accept()[0]:
            chunk = {"data": "A" * 1024, "taken": 0}
            client.ask("relay-send", chunk)
            with pytest.raises(BoardLostError, match="its connection ended"):
                client.ask("relay-send", chunk)
    assert any("before the last was taken" in line for line in ada.lines), ada.lines


@pytest.mark.parametrize(
    "bodies", [[{"data": "A"}], [{}], [{"data": "A" * (1 << 18)}], [{"data": "A" * 160_000}] * 24]
)
def test_a_daemon_that_sends_nonsense_ends_the_relay(ada: Any, bodies: list[Any]) -> None:
    relay, near, far = opened(ada)

    def send() -> None:
        sender = next(iter(ada.relays._relays.values())).sender
        for body in bodies:
            ada.node.rpc.push(sender, "relay-data", body)

    with near, far:
        ada.do(send)
        assert len(received(near, 1 << 22)) < 1 << 21
    relay.close()


def test_a_relay_without_sockets_is_an_error_with_a_reason(
    ada: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: socket.socket, address: object) -> None:
        raise OSError(errno.EADDRINUSE, "in use")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "bind", fail)
        with pytest.raises(MeshError, match="in use"):
            Relay(ada.bob, ada.address, ada.key, "ada")
    until(ada, lambda: not ada.relays)
