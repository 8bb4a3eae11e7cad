"""`picoedge run`: how it starts, what systemd is told, how it ends, and what it refuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster_boards import PICOEDGE, BoardOf, board_alone, until

from picoedge.cli.main import main
from picoedge.errors import MeshError
from picoedge.mesh.addresses import Address
from picoedge.mesh.cluster_folder import find_local
from picoedge.mesh.identity.admission import Invites
from picoedge.mesh.identity.lifetime import Moment
from picoedge.mesh.identity.roster import RosterFile
from picoedge.mesh.node import announce

NOTIFIED_S = 20.0


@pytest.fixture
def board(tmp_path: Path) -> Iterator[BoardOf]:
    """A board that has a cluster, and no daemon yet."""
    with board_alone(tmp_path) as made:
        yield made


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """What a service tells systemd, one state a call."""
    path = tmp_path / "notify"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as channel:
        channel.bind(str(path))
        channel.settimeout(NOTIFIED_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield lambda: channel.recv(4096).decode()


# -- its life --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_from_ready_to_stopping(
    board: BoardOf, systemd: Callable[[], str], how: signal.Signals
) -> None:
    daemon = board.start("--memory", "300M")
    assert systemd() == "READY=1"
    local = find_local(board.keys)
    assert local is not None
    assert (local.pid, str(local.address)) == (daemon.pid, board.address)
    assert (board.keys / "daemon.json").stat().st_mode & 0o077 == 0
    daemon.signal(how)
    assert systemd() == "STOPPING=1"
    assert daemon.wait(10) == 0
    assert not (board.keys / "daemon.json").exists()
    assert daemon.out.text == ""
    assert daemon.err.text == f"ada of cluster desk listens on {board.address} with 300 MB\n"


def test_it_serves_on_where_its_log_cannot_be_written(board: BoardOf) -> None:
    words = [*PICOEDGE, "run", "--listen", "127.0.0.1:0", "--models", str(board.shelf)]
    words += ["--memory", "300M", "-t", "1"]
    with (
        open("/dev/full", "w") as log,
        subprocess.Popen(words, env=board.environ(), stderr=log, stdin=subprocess.DEVNULL) as run,
    ):
        try:
            until(lambda: find_local(board.keys), "it listens")
            local = find_local(board.keys)
            assert local is not None
            board.address = str(local.address)
            assert board.does() == "free"  # it answers
            run.terminate()
            run.wait(10)
            assert not (board.keys / "daemon.json").exists()  # as at any orderly end
        finally:
            run.kill()


def test_a_board_whose_probe_is_killed_is_measured_all_the_same(board: BoardOf) -> None:
    daemon = board.start("--memory", "300M")

    def probe() -> psutil.Process | None:
        children = psutil.Process(daemon.pid).children()
        return next(
            (one for one in children if "picoedge.daemon.board_probe" in one.cmdline()), None
        )

    found = until(probe, "it is measured")
    assert found is not None
    found.kill()

    def facts() -> dict[str, Any] | None:
        with board.calling() as caller, suppress(MeshError):
            return dict(caller.ask("board-facts")["facts"])
        return None

    measured = until(facts, "it is measured again")
    assert board.stop() == 0
    board.start("--memory", "300M")
    assert facts() == measured  # at once: they were kept


def test_signs_of_life_where_systemd_wants_them(
    board: BoardOf, systemd: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    board.start()
    told = [systemd() for _ in range(5)]
    assert set(told) == {"READY=1", "WATCHDOG=1"}
    assert board.stop() == 0


def test_files_of_a_killed_daemon_are_no_daemon(board: BoardOf) -> None:
    daemon = board.start()
    daemon.kill()
    assert (board.keys / "daemon.json").exists()
    asked = board.run("ps")
    assert asked.wait() == 1
    assert "no daemon runs on this board" in asked.err.text
    board.address = ""
    board.start()
    assert board.stop() == 0


def test_a_board_joins_with_an_invite_from_stdin(board: BoardOf, tmp_path: Path) -> None:
    board.start()
    key = RosterFile(board.keys).roster.cluster.key
    invite = Invites(board.keys).issue(board.address, key, 60, Moment.now())
    other = BoardOf("bob", tmp_path / "bob")
    words = [*PICOEDGE, "run", "--join", "-", "--name", "bob", "--listen", "127.0.0.1:0"]
    with process(words, other) as joining:
        joining.stdin.write(invite + "\n")
        joining.stdin.close()
        until(lambda: board.seen().get("bob", {}).get("condition") == "alive", "bob is seen")
        joining.send_signal(signal.SIGTERM)
        assert joining.wait(10) == 0
        said = joining.stderr.read().splitlines()
    assert said[0] == "bob is in the cluster; from now on: picoedge run"
    assert said[1].startswith("bob of cluster desk listens on 127.0.0.1:")
    assert board.seen()["bob"]["condition"] == "left"
    again = BoardOf("eve", tmp_path / "eve").run("run", "--join", invite)
    assert again.wait() == 1  # it was for one board
    assert again.err.text.startswith("error: ")


@contextmanager
def process(words: list[str], board: BoardOf) -> Iterator[Any]:
    """A command with pipes; killed with the block."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, stdin=pipe, stdout=pipe, stderr=pipe, env=board.environ(), text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


# -- what it refuses -------------------------------------------------------------------------------


def test_an_address_in_use(board: BoardOf) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ran = board.run("run", "--listen", address)
        assert ran.wait() == 1
    assert ran.err.text.startswith(f"error: {address} is in use by another program (")
    assert ran.err.text.count("\n") == 1


def test_two_daemons_with_one_identity(board: BoardOf) -> None:
    daemon = board.start()
    ran = board.run("run", "--listen", "127.0.0.1:0")
    assert ran.wait() == 1
    assert f"runs already: process {daemon.pid}, at {board.address}" in ran.err.text
    assert find_local(board.keys) is not None
    assert board.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["smollm2-135m"],
            2,
            "takes no model: 'smollm2-135m' (to talk with a model",
        ),
        (["--listen", "over there"], 2, "not an address: 'over there'"),
        (["--listen", "10.0.0.1:99999"], 2, "not an address"),
        (["--peers", "10.0.0.1,:7433"], 2, "not an address: ':7433'"),
        (["--memory", "much"], 2, "--memory"),
        (["--ports", "7434"], 2, "no range of ports like 7434-7440"),
        (["--ports", "7440-7434"], 2, "no range of ports"),
        (["--ports", "80-90"], 2, "of 1024 to 65535"),
        (["--join", "let me in"], 2, "an invite begins with picoedge-join:"),
        (["--join", "picoedge-join:AAAA"], 2, "the invite is cut off or altered"),
        ([], 1, "this board is in no cluster"),
    ],
)
def test_a_wrong_command_line_is_an_error_of_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    for name in [name for name in os.environ if name.startswith("PICOEDGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PICOEDGE_CLUSTER", str(tmp_path / "cluster"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["run", *arguments]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "cluster").exists()


# -- where others find it --------------------------------------------------------------------------


class FakeNode:
    """As much of a node as is announced."""

    class Peers:
        def __init__(self) -> None:
            self.addresses: tuple[Address, ...] = ()
            self.hinted: list[Any] = []

        def hint(self, key: str, *addresses: Address) -> None:
            self.hinted.append((key, addresses))

    def __init__(self, address: Address, board: BoardOf) -> None:
        from picoedge.mesh.identity.identity import load_identity

        self.address, self.peers = address, self.Peers()
        self.rpc = self.loop = self
        self.identity, self.roster = load_identity(board.keys), RosterFile(board.keys).roster

    def soon(self, call: Callable[[], None]) -> None:
        call()

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        self.due = call


class FakeDiscovery:
    """Multicast without a network."""

    def __init__(self, *given: Any) -> None:
        self.given, self.closed = given, False
        made.append(self)

    def close(self) -> None:
        self.closed = True


made: list[FakeDiscovery] = []


@pytest.fixture
def lan(monkeypatch: pytest.MonkeyPatch) -> list[FakeDiscovery]:
    """A board with one wired interface, and multicast that can be seen."""
    made.clear()
    at: list[Any] = [(Address("10.0.0.4", 7433),), "eth0: wired"]
    monkeypatch.setattr(announce, "own_addresses", lambda listening: at)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(announce, "Discovery", FakeDiscovery)
    return made


def test_everywhere_is_told_as_the_lan_address(board: BoardOf, lan: list[FakeDiscovery]) -> None:
    node: Any = FakeNode(Address("0.0.0.0", 7433), board)
    said: list[str] = []
    with announce.announced(node, True, said.append):
        assert node.peers.addresses == (Address("10.0.0.4", 7433),)
        (discovery,) = lan
        tag, key, name, (address,), found = discovery.given
        assert (tag, key) == (node.roster.cluster.tag, node.identity.keys.public)
        assert (name, str(address)) == ("ada", "10.0.0.4:7433")
        found("a key", (Address("10.0.0.5", 7433),))
        assert node.peers.hinted == [("a key", (Address("10.0.0.5", 7433),))]
    assert discovery.closed
    assert said == [
        "other boards are told 10.0.0.4:7433 (eth0: wired)",
        "announced on the LAN by multicast DNS, as 10.0.0.4:7433",
    ]


def test_an_address_that_changes_is_told_anew(
    board: BoardOf, lan: list[FakeDiscovery], monkeypatch: pytest.MonkeyPatch
) -> None:
    node: Any = FakeNode(Address("0.0.0.0", 7433), board)
    said: list[str] = []
    with announce.announced(node, False, said.append):
        node.due()
        assert len(said) == 1
        now = (Address("10.0.0.9", 7433),)
        monkeypatch.setattr(announce, "own_addresses", lambda listening: (now, "eth0: wired"))
        node.due()
        assert node.peers.addresses == now
    assert said[1:] == ["other boards are told 10.0.0.9:7433 (eth0: wired)"]


def test_without_multicast(
    board: BoardOf, lan: list[FakeDiscovery], monkeypatch: pytest.MonkeyPatch
) -> None:
    node: Any = FakeNode(Address("10.0.0.4", 7433), board)
    said: list[str] = []
    with announce.announced(node, False, said.append):
        assert node.peers.addresses == (node.address,)
    assert (said, lan) == ([], [])

    def refused(*given: Any) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(announce, "Discovery", refused)
    with announce.announced(node, True, said.append):
        pass
    assert said.pop().startswith("no multicast DNS: [Errno 19] No such device")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with announce.announced(node, True, said.append):
        pass
    assert said.pop().endswith("(pip install zeroconf)")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_loop_back_is_not_announced(board: BoardOf, lan: list[FakeDiscovery], host: str) -> None:
    with announce.announced(FakeNode(Address(host, 7433), board), True, lan.append):  # type: ignore[arg-type]
        pass
    assert lan == []


def test_no_interface_to_be_reached_at(
    board: BoardOf, lan: list[FakeDiscovery], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(found: Any) -> Any:
        raise MeshError("no network interface of this board has an address", "name one")

    monkeypatch.setattr(announce, "own_addresses", none)
    node: Any = FakeNode(Address("0.0.0.0", 7433), board)
    said: list[str] = []
    with announce.announced(node, True, said.append):
        assert node.peers.addresses == ()
    assert len(said) == 1
