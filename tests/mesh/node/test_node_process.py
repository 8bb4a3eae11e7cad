"""Daemons as processes: killed, stopped, ended; found by their own board's commands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mesh_nodes import PATIENCE_S, Running, found, fresh_context, running

from picoedge.errors import AccessError, BoardLostError, MeshError
from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.cluster_folder import find_local, published_daemon
from picoedge.mesh.identity.identity import Identity
from picoedge.mesh.node.liveness import Change
from picoedge.mesh.transport.client import Client, connect_local
from picoedge.mesh.transport.server import Sender

DAEMON = Path(__file__).parents[2] / "support" / "mesh_daemon.py"
MOST_RESIDENT_KB = 34_000


@pytest.fixture
def context() -> Iterator[Any]:
    with fresh_context() as made:
        yield made


class Daemon:
    """A child process that is a daemon with the identity in `folder`."""

    def __init__(self, folder: Path, *peers: Address) -> None:
        command = [sys.executable, str(DAEMON), str(folder), *map(str, peers)]
        env = {**os.environ, "PYTHONPATH": str(DAEMON.parent.parent)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout is not None
        self.address = parse_address(json.loads(self.process.stdout.readline())["address"])

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end, and say how it was."""
        with self.process:
            return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def daemon(folder: Path, *peers: Address) -> Iterator[Daemon]:
    made = Daemon(folder, *peers)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.end()


def test_terminated_it_takes_leave(tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    with running(ada), daemon(second.folder, ada.address) as bob:
        ada.wait(lambda: ada.saw(second.keys.public, Change.SLOWED))  # both have greeted
        bob.signal(signal.SIGTERM)
        assert bob.end() == 0
        ada.wait(lambda: ada.saw(second.keys.public, Change.LEFT))
    assert find_local(second.folder) is None
    assert not (second.folder / "daemon.json").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_killed_or_stopped_it_is_dead(tmp_path: Path, how: signal.Signals) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    with running(ada), daemon(second.folder, ada.address) as bob:
        ada.wait(lambda: ada.saw(second.keys.public, Change.SLOWED))  # both have greeted
        bob.signal(how)
        ada.wait(lambda: ada.saw(second.keys.public, Change.DIED))
        if how == signal.SIGSTOP:
            bob.signal(signal.SIGCONT)
            ada.wait(lambda: ada.saw(second.keys.public, Change.RETURNED))


SESSION = """
import sys, time, zmq
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.identity.identity import load_identity
from picoedge.mesh.transport.client import Client
from pathlib import Path
keys = load_identity(Path(sys.argv[1])).keys
client = Client(zmq.Context(), keys, parse_address(sys.argv[2]), sys.argv[3], "ada")
client.ask("roster")
print("held", flush=True)
time.sleep(600)
"""


def test_a_session_that_is_killed_or_stopped_is_gone(tmp_path: Path) -> None:
    """Two seconds at most: libzmq finds it silent, where the system does not say that it ended."""
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    gone: list[Sender] = []
    ada.node.rpc.on_gone(lambda sender: (gone.append(sender), ada._wake()))
    with running(ada):
        words = [sys.executable, "-c", SESSION, str(second.folder), str(ada.address), ada.key]
        session = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        try:
            assert session.stdout is not None
            assert session.stdout.readline() == "held\n"
            session.send_signal(signal.SIGSTOP)
            ada.wait(lambda: bool(gone))
        finally:
            session.kill()
            session.wait()
            session.stdout.close()
    assert gone[0] == second.keys.public


def test_it_is_small(tmp_path: Path, context: Any) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    with running(ada), daemon(second.folder, ada.address):
        ada.wait(lambda: ada.saw(second.keys.public, Change.SLOWED))  # both have greeted
        with connect_local(context, second.folder) as client:
            assert client.ask("memory")["resident_kb"] < MOST_RESIDENT_KB
            modules = set(client.ask("modules")["modules"])
    assert not modules & {"numpy", "psutil", "zeroconf", "asyncio", "picoedge.store"}


def test_its_board_finds_it(tmp_path: Path, context: Any) -> None:
    folder = found(tmp_path, "ada")[0].folder
    with daemon(folder) as ada:
        local = find_local(folder)
        assert local is not None
        assert (local.pid, local.address) == (ada.process.pid, ada.address)
        with connect_local(context, folder) as client:
            assert "roster" in client.ask("roster")
        with pytest.raises(MeshError, match=f"runs already: process {local.pid}"):
            published_daemon(folder, ada.address, 1).__enter__()
        ada.signal(signal.SIGKILL)
        ada.end()
        assert (folder / "daemon.json").exists()
        assert find_local(folder) is None
        with pytest.raises(BoardLostError, match=r"no daemon runs.*start it: picoedge run"):
            connect_local(context, folder)


def test_no_daemon_and_no_identity(tmp_path: Path, context: Any) -> None:
    assert find_local(tmp_path) is None
    with pytest.raises(AccessError, match="in no cluster"):
        connect_local(context, tmp_path)


def test_a_daemon_file_tells_an_address_to_call(tmp_path: Path) -> None:
    for host, local in (("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("10.0.0.4", "10.0.0.4")):
        with published_daemon(tmp_path, Address(host, 7433), 5):
            found_there = find_local(tmp_path)
        assert found_there is not None
        assert found_there.address == Address(local, 7433)
        assert found_there.listens == Address(host, 7433)
        assert found_there.pid == os.getpid()
        assert find_local(tmp_path) is None


def test_a_damaged_daemon_file(tmp_path: Path) -> None:
    with published_daemon(tmp_path, Address("127.0.0.1", 7433), 5):
        for text in ("{}", "[]", '{"pid": -1, "address": "x y", "incarnation": 0}'):
            (tmp_path / "daemon.json").write_text(text)
            assert find_local(tmp_path) is None


def test_a_daemon_that_ends_ends_its_callers(tmp_path: Path, context: Any) -> None:
    identity = found(tmp_path, "ada")[0]
    with daemon(identity.folder) as ada:
        public = identity.keys.public
        with Client(context, identity.keys, ada.address, public, "ada") as client:
            client.ask("roster")
            ada.signal(signal.SIGKILL)
            client.monitor.poll(PATIENCE_S * 1000)
            with pytest.raises(
                BoardLostError, match=r"board ada at .*its connection ended"
            ) as lost:
                client.notifications()
            assert lost.value.board == "ada"


BUSY = """
import sys, time, zmq
from pathlib import Path
from picoedge.mesh.addresses import Address
from picoedge.mesh.identity.identity import load_identity
from picoedge.mesh.identity.roster import RosterFile
from picoedge.mesh.node.node import Node
folder = Path(sys.argv[1])
node = Node(zmq.Context(), load_identity(folder), RosterFile(folder), Address("127.0.0.1", 0))

def cut(peer, body):
    time.sleep(0.5)  # its queue fills meanwhile
    node.rpc.server.disconnect(peer)
    time.sleep(1.0)  # a heartbeat would fall due

node.rpc.on("cut", cut)
node.rpc.on("pause", lambda peer, body: time.sleep(2.0))
print(node.address, flush=True)
node.run()
"""


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[Identity, Identity, Address, subprocess.Popen[str]]]:
    """A daemon that can be kept from reading, another board's identity, and where it listens."""
    first, second = found(tmp_path, "ada", "bob")
    ada = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(first.folder)], stdout=subprocess.PIPE, text=True
    )
    assert ada.stdout is not None
    try:
        yield first, second, parse_address(ada.stdout.readline().strip()), ada
    finally:
        ada.kill()
        ada.wait()
        ada.stdout.close()


PINGS = """
import os, socket, struct, sys, time, zmq
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transport.curve import SocketBounds, borrowed, configure_client, events
from picoedge.mesh.transport.messages import control
secret, server, endpoint = sys.argv[1:]
made = zmq.Context().socket(zmq.DEALER)
configure_client(made, KeyPair.of_secret(secret), server, SocketBounds(messages=1000))
made.setsockopt(zmq.HEARTBEAT_IVL, 1)
monitor = made.get_monitor_socket(zmq.EVENT_CONNECTED)
made.connect(endpoint)
monitor.poll()
_, file = next(events(monitor))
made.send_multipart(control("roster", {"id": 1}, 1))
made.recv_multipart()
made.send_multipart(control("pause", {}, 1))
for _ in range(100):
    made.send_multipart(control("x", {}, 1))
    time.sleep(0.003)
time.sleep(0.3)
with borrowed(file) as connection:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
os._exit(0)
"""


@pytest.mark.slow
def test_heartbeats_in_a_queue_that_ended_do_not_end_the_daemon(
    busy: tuple[Identity, Identity, Address, subprocess.Popen[str]], context: Any
) -> None:
    """libzmq aborts where it answers a heartbeat it had read before the connection was reset."""
    first, second, address, ada = busy
    words = [second.keys.secret, first.keys.public, address.endpoint]
    subprocess.run([sys.executable, "-c", PINGS, *words], check=True, timeout=PATIENCE_S)
    with Client(context, second.keys, address, first.keys.public, "ada") as client:
        assert "roster" in client.ask("roster", timeout_s=PATIENCE_S)
    assert ada.poll() is None


def test_a_board_that_fills_a_queue_and_is_cut_does_not_end_the_daemon(
    busy: tuple[Identity, Identity, Address, subprocess.Popen[str]], context: Any
) -> None:
    """libzmq aborts where a heartbeat falls due on such a connection."""
    first, second, address, ada = busy
    key = first.keys.public
    with Client(context, second.keys, address, key, "ada") as client:
        client.ask("roster")
        client.push("cut", {})
        for _ in range(500):
            client.push("nothing", {"text": "x" * 20_000})
        with pytest.raises(MeshError, match="its connection ended"):
            client.ask("roster", timeout_s=PATIENCE_S)
    with Client(context, second.keys, address, key, "ada") as client:
        assert "roster" in client.ask("roster", timeout_s=PATIENCE_S)
    assert ada.poll() is None
