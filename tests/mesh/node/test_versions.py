"""A board speaks its own wire version and the one before: a cluster is upgraded board by board.

Version 1 is here twice: as frames written by hand, and as the real daemon of a commit of that
version.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from mesh_nodes import PATIENCE_S, Running, found, fresh_context, running
from packed_source import write_text
from store_models import write_gguf
from version1_code import unpack_version1

from picoedge.errors import MeshError, ProtocolError
from picoedge.jobs.spec import VERSION_1
from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.identity.identity import Identity, KeyPair, load_signing_key
from picoedge.mesh.node.liveness import Change
from picoedge.mesh.transfer.donor_client import DonorClient
from picoedge.mesh.transfer.puller import pull
from picoedge.mesh.transport.client import Client
from picoedge.mesh.transport.connection import InboxGuard
from picoedge.mesh.transport.curve import (
    Authenticator,
    SocketBounds,
    configure_client,
    configure_server,
)
from picoedge.mesh.transport.frames import Header, Kind
from picoedge.mesh.transport.limits import Limits
from picoedge.mesh.transport.messages import Dialect, RawReply, Translation, read_control
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Wanted
from picoedge.store.sources.source import open_source

SCRIPT = Path(__file__).parents[2] / "support" / "version1_daemon.py"
# What a board of version 1 sends in front of the JSON of every control message.
HEADER_1 = b"PE\x01\x01" + bytes(26)


def frames_1(kind: str, body: dict[str, Any]) -> list[bytes]:
    return [HEADER_1, json.dumps({"kind": kind, "body": body}).encode()]


@pytest.fixture
def context() -> Iterator[Any]:
    with fresh_context() as made:
        yield made


class Board1:
    """A client of version 1, as raw frames over CURVE."""

    def __init__(self, context: Any, keys: KeyPair, board: Running) -> None:
        self.inbox: list[dict[str, Any]] = []
        self.socket = context.socket(zmq.DEALER)
        configure_client(self.socket, keys, board.key, SocketBounds())
        self.socket.rcvtimeo = int(PATIENCE_S * 1000)
        self.socket.connect(board.address.endpoint)

    def __enter__(self) -> Board1:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close(0)

    def send(self, kind: str, body: dict[str, Any]) -> None:
        self.socket.send_multipart(frames_1(kind, body))

    def receive(self, *kinds: str) -> dict[str, Any]:
        """The body of the next message of these kinds; all must be of version 1."""
        while True:
            for message in self.inbox:
                if message["kind"] in kinds:
                    self.inbox.remove(message)
                    return dict(message["body"])
            header, raw = self.socket.recv_multipart()
            assert header == HEADER_1
            self.inbox.append(json.loads(raw))

    def ask(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        self.send(kind, {**body, "id": 7})
        reply = self.receive("reply", "error")
        assert reply["id"] == 7
        return reply


HELLO_1 = {
    "name": "bob", "incarnation": 5, "port": 7433, "addresses": ["127.0.0.1:1"], "digest": "",
    "epoch": 4,
}  # fmt: skip


@pytest.fixture
def pair(tmp_path: Path) -> list[Identity]:
    return found(tmp_path, "ada", "bob")


def test_recorded_frames_of_version_1(pair: list[Identity], context: Any) -> None:
    ada = Running(pair[0], translation=VERSION_1)
    ada.node.peers.report = lambda: {
        "does": "taken", "holder": "bob", "queue_length": 2, "stalled_on": "",
    }  # fmt: skip
    taken: list[dict[str, Any]] = []
    started: list[dict[str, Any]] = []

    def reserve(peer: str, body: dict[str, Any]) -> dict[str, Any]:
        taken.append(body)
        ada.node.rpc.push(peer, "job-queued", {"place": 1, "holder": "bob"})
        return {"memory_bytes": 9}

    def start(peer: str, body: dict[str, Any]) -> None:
        started.append(body)
        ada.node.rpc.push(peer, "job-listens", {"group": "ab", "port": 4711})

    ada.node.rpc.on("job-reserve", reserve)
    ada.node.rpc.on("job-start", start)
    ada.node.rpc.on("mesh-state", lambda peer, body: {"boards": [{"report": {"queue_length": 2}}]})
    ada.node.rpc.on("ping", lambda peer, body: RawReply(Header(Kind.SHARD, shape=(2,)), b"ab"))
    with running(ada), Board1(context, pair[1].keys, ada) as bob:
        hello = bob.ask("hello", HELLO_1)
        assert (hello["name"], hello["incarnation"]) == ("ada", ada.node.peers.incarnation)
        assert type(hello["epoch"]) is int
        ada.wait(lambda: ada.saw(pair[1].keys.public, Change.JOINED))
        # Version 1 takes whatever `waiting` holds for a stall: a queue is not told there.
        its = {"does": "taken", "for": "bob", "queue_length": 2, "waiting": ""}
        assert bob.receive("beat")["state"] == its
        assert bob.receive("gossip")["roster"] == ada.node.roster.to_json()
        bob.send("beat", {"incarnation": 5, "sequence": 1, "digest": "", "state": {"waiting": 3}})
        report: dict[str, Any] = {}
        while not report:
            members = ada.do(lambda: ada.node.peers.liveness.members)
            report = dict(members[pair[1].keys.public].report)
        assert report == {"queue_length": 3}
        assert not ada.saw(pair[1].keys.public, Change.SLOWED), "a queue is no stalled disk"
        bob.send("session-take", {"id": 8})
        assert bob.receive("session-queued") == {"place": 1, "held_by": "bob"}
        assert bob.receive("reply") == {"memory_bytes": 9, "id": 8}
        assert taken == [{"id": 8}]
        seats = [{"key": "k", "vocabulary": [0, 4]}, {"key": "l", "vocabulary": [4, 4]}]
        bob.send("session-start", {"id": 10, "spec": {"session": "ab", "seats": seats}})
        assert bob.receive("session-listens") == {"session": "ab", "port": 4711}
        assert bob.receive("reply") == {"id": 10}
        ranks = [{"key": "k", "head_shards": [0, 4]}, {"key": "l", "head_shards": [4, 4]}]
        assert started == [{"id": 10, "spec": {"group": "ab", "ranks": ranks}}]
        assert bob.ask("mesh-state", {})["boards"] == [{"report": {"waiting": 2}}]
        assert "nothing of 'sing'" in bob.ask("sing", {})["message"]
        bob.send("ping", {"id": 9})
        header, raw = b"", b""
        while raw != b"ab":
            header, raw = bob.socket.recv_multipart()
        assert header[:4] == b"PE\x01\x05"


def test_two_boards_of_this_version_speak_it(pair: list[Identity], context: Any) -> None:
    ada = Running(pair[0])
    bob = Running(pair[1], ada.address)
    ada.node.rpc.on("echo", lambda peer, body: {"body": dict(body)})
    with running(ada, bob):
        ada.wait_for(bob, Change.JOINED)
        bob.wait_for(ada, Change.JOINED)
        assert bob.do(lambda: bob.node.rpc.dialer.to(ada.key).dialect.version) == 2
        with ada.client(context, pair[1].keys) as client:
            assert client.ask("echo", {"text": "x"})["body"] == {"text": "x", "id": 1}
            assert client.version == 2


def test_a_newer_version_is_refused_with_the_reason(pair: list[Identity], context: Any) -> None:
    ada = Running(pair[0], limits=Limits(strikes=1, refused_s=0.1))
    reason = "board bob speaks version 3, this one 1 and 2: update picoedge here"
    with running(ada), Board1(context, pair[1].keys, ada) as bob:
        bob.socket.send_multipart([HEADER_1.replace(b"\x01", b"\x03", 1), b"{}"])
        ada.wait(lambda: reason in ada.lines)


def test_a_client_is_told_of_a_newer_version(context: Any) -> None:
    keys, server = KeyPair.new(), context.socket(zmq.ROUTER)
    configure_server(server, keys, SocketBounds())
    authenticator = Authenticator(context, lambda key: True)
    port = server.bind_to_random_port("tcp://127.0.0.1")

    def answer() -> None:
        assert authenticator.socket.poll(PATIENCE_S * 1000)
        authenticator.answer()
        route, *_ = server.recv_multipart()
        server.send_multipart([route, HEADER_1.replace(b"\x01", b"\x03", 1), b"{}"])

    thread = threading.Thread(target=answer)
    thread.start()
    address = Address("127.0.0.1", port)
    with (
        Client(context, KeyPair.new(), address, keys.public, "bob") as client,
        pytest.raises(MeshError, match="board bob speaks version 3, this one 1 and 2: update"),
    ):
        client.ask("roster")
    thread.join(PATIENCE_S)
    authenticator.close()
    server.close(0)


NAMES = Translation({"new": "old"}, {"new": {"a.*.b": {"x": "y"}, "": {"a": "c"}}})


def test_renamed_kinds_and_fields_are_translated_both_ways() -> None:
    here, there = Dialect(NAMES), Dialect()
    body = {"a": [{"b": {"x": 1, "z": 2}}, {"d": 3}, 4], "x": 5}
    frames = here.write("new", body)
    old = {"c": [{"b": {"y": 1, "z": 2}}, {"d": 3}, 4], "x": 5}
    assert read_control(frames)[1:] == ("old", {**old, "speaks": 2})
    assert there.read(frames)[0] == "old"
    assert Dialect(NAMES).read(frames) == ("new", body)
    reply = Dialect(NAMES)
    reply.read(frames_1("old", {}))
    assert read_control(reply.write("reply", body, asked="new"))[2] == old
    assert reply.reply_body("new", old) == body


@pytest.mark.parametrize("speaks", [0, -1, "2", None, True, 1.5])
def test_a_malformed_offer_of_a_version(speaks: Any) -> None:
    with pytest.raises(ProtocolError, match="speaks is not a version"):
        Dialect().read(frames_1("echo", {"speaks": speaks}))


def test_the_newest_version_both_know_is_spoken() -> None:
    dialect = Dialect()
    assert dialect.version == 1
    dialect.read(frames_1("echo", {"speaks": 9}))
    assert dialect.version == 2
    dialect.read(frames_1("echo", {}))
    assert dialect.version == 1


# -- the real daemon of version 1 ------------------------------------------------------------------


@pytest.fixture(scope="module")
def code_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of version 1, unpacked."""
    return unpack_version1(tmp_path_factory.mktemp("version1"))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    write_gguf(folder / "m.gguf", "Q8_0", tied=False)
    pack_source(open_source(folder / "m.gguf"), folder / "m.pico", write_text=write_text)
    return folder


@contextmanager
def daemon_1(code: Path, folder: Path, shelf: Path, *peers: Address) -> Iterator[Address]:
    env = {**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, str(SCRIPT), str(folder), str(shelf), *map(str, peers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    try:
        yield parse_address(json.loads(process.stdout.readline())["address"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("dialer", ["new", "old"])
def test_a_daemon_of_version_1_is_a_member(
    pair: list[Identity], code_1: Path, shelf: Path, context: Any, tmp_path: Path, dialer: str
) -> None:
    old = pair[1]
    ada = Running(pair[0], translation=VERSION_1)
    its: dict[str, Any] = {"does": "free", "queue_length": 2, "stalled_on": ""}
    ada.node.peers.report = lambda: its
    dials = [ada.address] if dialer == "old" else []
    with running(ada), daemon_1(code_1, old.folder, shelf, *dials) as address:
        if dialer == "new":
            ada.do(lambda: ada.node.peers.hint(old.keys.public, address))
        ada.wait(lambda: ada.saw(old.keys.public, Change.JOINED))
        with Client(context, pair[0].keys, address, old.keys.public, "old", VERSION_1) as client:
            state = client.ask("mesh-state")
            assert state["boards"] == [{"name": "old", "report": {"queue_length": 3}}]
            pushed: list[tuple[str, Any]] = []
            answer = client.ask("job-reserve", on_push=lambda *each: pushed.append(each))
            assert (answer["memory_bytes"], client.version) == (1 << 20, 1)
            assert pushed == [("job-queued", {"place": 1})]
            seen: dict[str, Any] = {}
            while "queue_length" not in seen.get(ada.key, {"report": {}})["report"]:
                seen = client.ask("seen")["boards"]
            assert seen[ada.key]["condition"] == "alive", "a queue is no stalled disk"
            its["stalled_on"] = "disk"
            while seen[ada.key]["condition"] != "slow":
                seen = client.ask("seen")["boards"]
            ada.do(lambda: allow(ada, "cyd"))  # the roster spreads to the older board
            while client.ask("seen")["roster"] != ada.node.roster.digest:
                pass
        sound, target = Pack.open(shelf / "m.pico"), tmp_path / "mine" / "m.pico"
        guard = InboxGuard()
        link = DonorClient(context, pair[0].keys, address, old.keys.public, guard)
        pull(target, sound.identity, Wanted(sound.all_shards, embed=True), [("old", link)])
        guard.close()
        link.close()
        Pack.open(target).verify()
        assert not ada.saw(old.keys.public, Change.SLOWED)
        assert not any("dropped" in line for line in ada.lines), ada.lines
    assert ada.saw(old.keys.public, Change.LEFT)


def allow(board: Running, name: str) -> None:
    signing, key = load_signing_key(board.identity.folder), KeyPair.new().public
    board.node.roster_file.update(lambda roster: roster.with_allow(signing, key, name))
    board.node.peers.roster_changed()
