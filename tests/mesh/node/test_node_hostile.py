"""What comes from outside or from a faulty board costs at most that board's connection."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from mesh_nodes import PATIENCE_S, QUICK, Running, found, fresh_context, running

from picoedge.errors import MeshError
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transport.curve import SocketBounds, configure_client, received
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits
from picoedge.mesh.transport.messages import Body, control

FRAMES = 3000
CONTROL_HEADER = control("x", {})[0]
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15) + b"\x00" + bytes(31)


class Board(Running):
    """A running board that answers "echo", and the keys of two others that are let in."""

    bob: KeyPair
    eve: KeyPair


@pytest.fixture
def ada(tmp_path: Path) -> Iterator[Board]:
    first, second, third = found(tmp_path, "ada", "bob", "eve")
    node = Board(first)
    node.bob, node.eve = second.keys, third.keys
    node.node.rpc.on("echo", lambda peer, body: {"text": body.get("text")})
    with running(node):
        yield node


@pytest.fixture
def context() -> Iterator[Any]:
    with fresh_context() as made:
        yield made


@pytest.fixture
def dealer(ada: Board, context: Any) -> Iterator[Any]:
    """A connection of eve's that can send anything."""
    made = context.socket(zmq.DEALER)
    configure_client(made, ada.eve, ada.key, SocketBounds(frame_bytes=1 << 30, messages=64))
    made.immediate = True
    made.sndtimeo = int(PATIENCE_S * 1000)
    made.reconnect_ivl = 10
    made.connect(ada.address.endpoint)
    yield made
    made.close(0)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def mutated(random: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(random.randint(1, 4)):
        data[random.randrange(len(data))] = random.randrange(256)
    return bytes(data[: random.randint(0, len(data))] if random.random() < 0.3 else data)


def test_garbage_from_outside(ada: Board, context: Any) -> None:
    dice = random.Random(4)
    before_mb = resident_mb()
    with ada.client(context, ada.bob) as client:
        for _ in range(300):
            with socket.create_connection(("127.0.0.1", ada.address.port), 5) as raw:
                begin = mutated(dice, GREETING) if dice.random() < 0.7 else b""
                raw.sendall(begin + dice.randbytes(dice.choice([0, 1, 64, 5000])))
            if dice.random() < 0.05:
                assert client.ask("echo", {"text": "well"})["text"] == "well"
        assert client.ask("echo", {"text": "well"})["text"] == "well"
    assert resident_mb() - before_mb < 20


def test_a_peer_that_only_connects_is_cut(ada: Board, context: Any) -> None:
    with ada.client(context, ada.bob) as client:
        client.ask("echo")
        excess = [
            socket.create_connection(("127.0.0.1", ada.address.port), 5)
            for _ in range(2 * DEFAULT_LIMITS.silent_connections)
        ]
        try:
            excess[0].settimeout(PATIENCE_S)
            while excess[0].recv(100):  # libzmq's greeting, then the end
                pass
            assert client.ask("echo", {"text": "well"})["text"] == "well"
        finally:
            for each in excess:
                each.close()


def test_random_frames_of_a_board(ada: Board, context: Any, dealer: Any) -> None:
    dice = random.Random(5)
    sound: list[list[bytes]] = [
        control(kind, {"id": 1, **body})
        for kind, body in (
            ("echo", {"text": "x"}),
            ("hello", ada.do(ada.node.peers._own_hello)),
            ("beat", {"incarnation": 1, "sequence": 1, "digest": "", "report": {}}),
            ("gossip", {"roster": ada.node.roster.to_json()}),
            ("peers", {"boards": {ada.key: ["127.0.0.1:1"]}}),
            ("leave", {"incarnation": 1}),
            ("join", {"public": ada.eve.public, "name": "eve"}),
            ("reply", {}),
            ("error", {"type": "x", "message": "y", "hint": "z"}),
        )
    ]
    before_mb = resident_mb()
    with ada.client(context, ada.bob) as client:
        for number in range(FRAMES):
            frames = [mutated(dice, frame) for frame in dice.choice(sound)]
            if dice.random() < 0.2:
                frames = [dice.randbytes(dice.randint(0, 300)) for _ in range(dice.randint(1, 5))]
            with contextlib.suppress(zmq.Again):  # cut, or made to wait: as it should be
                dealer.send_multipart(frames, zmq.NOBLOCK)
            if number % 100 == 0:
                assert client.ask("echo", {"text": "well"})["text"] == "well"
        assert client.ask("echo", {"text": "well"})["text"] == "well"
    assert resident_mb() - before_mb < 20


NESTED: Any = []
for _ in range(100):
    NESTED = [NESTED]

BAD_BODIES: list[tuple[str, Body]] = [
    ("hello", {}),
    ("hello", {"name": 5}),
    ("beat", {"incarnation": -1, "sequence": 0, "digest": "", "report": {}}),
    ("beat", {"incarnation": 1e300, "sequence": 0, "digest": "", "report": {}}),
    ("gossip", {"roster": None}),
    ("gossip", {"roster": {"cluster": {"name": "desk", "key": "k"}, "entries": []}}),
    ("peers", {"boards": {"x": []}}),
    ("peers", {"boards": 3}),
    ("leave", {"incarnation": "1"}),
    ("echo", {"id": "one"}),
    ("echo", {"id": True}),
    ("reply", {}),
    ("echo", {"deep": NESTED}),
]


@pytest.mark.parametrize(("kind", "body"), BAD_BODIES)
def test_a_malformed_message_ends_its_connection(
    ada: Board, context: Any, dealer: Any, kind: str, body: Body
) -> None:
    watch = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    text = json.dumps([kind, body]).encode()
    with ada.client(context, ada.bob) as client:
        client.ask("echo")
        dealer.send_multipart([CONTROL_HEADER, text])
        assert watch.poll(PATIENCE_S * 1000)
        assert client.ask("echo", {"text": "well"})["text"] == "well"
    dealer.disable_monitor()
    watch.close()
    assert any(line.startswith("dropped eve: ") for line in ada.lines)


def test_a_peer_that_keeps_failing_has_to_wait(ada: Board, context: Any, dealer: Any) -> None:
    watch = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    while not watch.poll(0):
        try:
            dealer.send_multipart([b"nonsense"], zmq.NOBLOCK)
        except zmq.Again:
            watch.poll(5)
    assert any("eve goes on: it is kept out" in line for line in ada.lines)
    with ada.client(context, ada.bob) as client:
        assert client.ask("echo", {"text": "well"})["text"] == "well"
    dealer.disable_monitor()
    watch.close()


def test_an_answer_of_ours_that_is_too_long_is_no_fault_of_the_one_who_asks(
    ada: Board, context: Any
) -> None:
    ada.do(lambda: ada.node.rpc.on("much", lambda peer, body: {"text": "x" * (2 << 20)}))
    with ada.client(context, ada.bob) as client:
        for _ in range(2 * DEFAULT_LIMITS.strikes):
            with pytest.raises(MeshError, match=r"ada: a 'reply' message of \d+ bytes: the limit"):
                client.ask("much")
        assert client.ask("echo", {"text": "well"})["text"] == "well"
    assert not any("dropped" in line for line in ada.lines)


def test_a_heartbeat_s_report_is_bounded_and_forgotten(ada: Board, context: Any) -> None:
    state = {"does": "x" * 900_000, "deep": [[1] * 1000], "n" * 1000: 1, "load": 7}
    hello = {**ada.do(ada.node.peers._own_hello), "name": "eve", "incarnation": 5}
    beat = {"incarnation": 5, "sequence": 1, "digest": "", "report": state}
    members = ada.node.peers.liveness.members
    with ada.client(context, ada.eve) as client:
        client.ask("hello", hello)
        client.push("beat", beat)
        client.ask("echo")
        report = ada.do(lambda: dict(members[ada.eve.public].report))
        assert report == {"does": "x" * 200, "load": 7}
        client.push("leave", {"incarnation": 5})
        client.ask("echo")
        assert ada.do(lambda: dict(members[ada.eve.public].report)) == {}
        client.push("beat", {**beat, "report": {f"f{n}": n for n in range(1000)}})
        with pytest.raises(MeshError, match="its connection ended"):
            client.ask("echo")


def test_a_frame_too_large(ada: Board, context: Any, dealer: Any) -> None:
    watch = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    with ada.client(context, ada.bob) as client:
        client.ask("echo")
        dealer.send_multipart([CONTROL_HEADER, bytes(2 << 20)])
        assert watch.poll(PATIENCE_S * 1000)
        assert client.ask("echo", {"text": "well"})["text"] == "well"
    dealer.disable_monitor()
    watch.close()


def test_a_flood_of_sound_messages(
    ada: Board, context: Any, dealer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Low, as sender and daemon share this process: on a busy machine they pass no 16 MB a second.
    bounds = dataclasses.replace(DEFAULT_LIMITS, burst_bytes=1 << 18, bytes_per_s=1 << 20)
    monkeypatch.setattr(ada.node.rpc.server, "_limits", bounds)
    watch = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    frames = control("echo", {"text": "x" * 500_000})
    before_mb = resident_mb()
    with ada.client(context, ada.bob) as client:
        client.ask("echo")
        # A connection that reads no replies may end before the next heartbeat counts its bytes.
        while not any("sends more than is believed" in line for line in ada.lines):
            dealer.poll(100, zmq.POLLOUT)
            with contextlib.suppress(zmq.Again):
                dealer.send_multipart(frames, zmq.NOBLOCK)
        assert watch.poll(PATIENCE_S * 1000)
        assert client.ask("echo", {"text": "well"})["text"] == "well"
    dealer.disable_monitor()
    watch.close()
    assert resident_mb() - before_mb < 200


def test_a_daemon_that_is_late_takes_no_board_for_a_flood(tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first, limits=Limits(burst_bytes=1 << 20, bytes_per_s=16 << 20))
    ada.node.rpc.on("echo", lambda peer, body: {"text": body.get("text")})
    with running(ada), fresh_context() as context, ada.client(context, second.keys) as client:
        client.ask("echo")

        def late() -> int:
            end_s = time.monotonic() + 4 * QUICK.beat_s
            for _ in range(3):
                client.push("echo", {"text": "x" * 500_000})
            accepted = ada.node.rpc.server._accepted
            while (
                sum(received(each)[0] for each in accepted) < 1_500_000 or time.monotonic() < end_s
            ):
                pass
            return ada.node.peers._sequence

        beat = ada.do(late)
        while ada.do(lambda: ada.node.peers._sequence) < beat + 2:
            pass
        assert client.ask("echo", {"text": "well"})["text"] == "well"
        assert ada.lines == []


def test_a_replayed_connection_says_nothing(ada: Board, context: Any) -> None:
    """Bytes of a whole good connection, recorded and sent again: CURVE takes them from no peer."""
    recorded: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as tap:
        tap.settimeout(PATIENCE_S)
        asked = ada.node.rpc.server.address
        ada.address = type(asked)("127.0.0.1", tap.getsockname()[1])
        with ada.client(context, ada.bob) as client:
            there = socket.create_connection(("127.0.0.1", asked.port), 5)
            here, _ = tap.accept()
            with here, there:
                _relay_until_answered(client, here, there, recorded)
    heard: list[str] = []
    ada.do(lambda: ada.node.rpc._handlers.update(echo=lambda peer, body: heard.append(str(peer))))
    with socket.create_connection(("127.0.0.1", asked.port), 5) as again:
        again.settimeout(PATIENCE_S)
        again.sendall(b"".join(recorded))
        while again.recv(1000):
            pass
    assert not heard


def _relay_until_answered(client: Any, here: Any, there: Any, recorded: list[bytes]) -> None:
    def up() -> None:
        while data := _quietly(here):
            recorded.append(data)
            there.sendall(data)

    def down() -> None:
        while data := _quietly(there):
            here.sendall(data)

    threads = [threading.Thread(target=each) for each in (up, down)]
    for each in threads:
        each.start()
    assert client.ask("echo", {"text": "once"})["text"] == "once"
    for each in (here, there):
        each.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(PATIENCE_S)


def _quietly(connection: Any) -> bytes:
    try:
        return bytes(connection.recv(1 << 16))
    except OSError:
        return b""
