"""`picoedge keys`: output and error streams, rights of each role, and no secret shown."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from cli_runs import Ran, Run, run_here

from picoedge.mesh import interfaces
from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.cluster_folder import published_daemon
from picoedge.mesh.identity.admission import accept, admit, parse_invite
from picoedge.mesh.identity.identity import KeyPair, load_identity, load_signing_key
from picoedge.mesh.identity.lifetime import Moment
from picoedge.mesh.identity.roster import RosterFile
from picoedge.mesh.interfaces import Interface


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`picoedge keys …` of a board: its folder, then the words."""
    for name in [name for name in os.environ if name.startswith("PICOEDGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(interfaces, "interfaces", lambda: [Interface("eth0", ("192.0.2.7",))])

    def run_one(folder: Path, *args: str) -> Ran:
        monkeypatch.setenv("PICOEDGE_CLUSTER", str(folder))
        return run_here(capsys, "keys", *args)

    return run_one


@pytest.fixture
def home(run: Run, tmp_path: Path) -> Path:
    assert run(tmp_path / "home", "init", "--board", "pi0").code == 0
    return tmp_path / "home"


def join(home: Path, folder: Path, string: str, name: str) -> str:
    """The other board's public key, after both daemons have done their part."""
    invitation, keys = parse_invite(string), KeyPair.new()
    roster = admit(
        RosterFile(home), load_signing_key(home), invitation.keys.public, keys.public, name,
        Moment.now(),
    )  # fmt: skip
    accept(folder, invitation, roster.to_json(), keys)
    return keys.public


def failure(ran: Ran) -> str:
    """The one line of a command that must fail without a traceback."""
    assert ran.code != 0
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_init_makes_a_cluster_once(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "cluster"
    ran = run(folder, "init", "--name", "desk", "--board", "pi0")
    assert ran == Ran(0, f"made cluster desk with this board, pi0, in {folder}\n", "")
    again = run(folder, "init")
    assert again.code == 1
    assert "in a cluster already (to leave it for good, remove that folder)" in failure(again)


def test_init_reports_as_json(run: Run, tmp_path: Path) -> None:
    ran = run(tmp_path / "c", "init", "--board", "pi0", "--json")
    report = json.loads(ran.out)
    assert report["cluster"] == "home"
    assert report["board"] == "pi0"
    assert report["public"] == load_identity(tmp_path / "c").keys.public


def test_the_board_is_named_after_its_host(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Küche 3.local")
    assert run(tmp_path / "c", "init").code == 0
    assert load_identity(tmp_path / "c").name == "K-che-3"


@pytest.mark.parametrize("option", ["--name", "--board"])
def test_bad_names_exit_2(run: Run, tmp_path: Path, option: str) -> None:
    ran = run(tmp_path / "c", "init", option, "two words")
    assert ran.code == 2
    assert "no name for a" in failure(ran)
    assert not (tmp_path / "c").exists()


def test_from_init_to_revoke(run: Run, home: Path, tmp_path: Path) -> None:
    invited = run(home, "invite", "--ttl", "30m")
    string, line = invited.out.splitlines()
    assert line == f"picoedge run --join {string}"
    assert invited.err == (
        "note: at 192.0.2.7:7433: eth0: the only one with an address; --address names another\n"
    )
    assert parse_invite(string).addresses == ("192.0.2.7:7433",)
    assert 1700 < parse_invite(string).expires - time.time() <= 1801

    public = join(home, tmp_path / "pi1", string, "pi1")
    shown = run(home, "show")
    assert shown.err == ""
    rows = [line.split() for line in shown.out.splitlines()]
    assert ["this", "board", "pi0,", "allowed"] in rows
    assert ["signing", "key", "here"] in rows
    assert ["pi1", "allowed", public] in rows

    assert run(home, "revoke", "pi1").out.startswith("revoked pi1: running boards")
    facts = json.loads(run(home, "show", "--json").out)
    assert facts["revoked"] == [{"name": "pi1", "public": public}]
    assert [member["name"] for member in facts["members"]] == ["pi0"]
    assert "for good" in failure(run(home, "allow", public, "pi1"))


def test_a_joined_board_shows_but_does_not_decide(run: Run, home: Path, tmp_path: Path) -> None:
    string = json.loads(run(home, "invite", "--json").out)["invite"]
    joined = tmp_path / "pi1"
    public = join(home, joined, string, "pi1")
    assert "on another board" in run(joined, "show").out
    other = KeyPair.new().public
    for args in (["invite"], ["revoke", "pi0"], ["revoke", public], ["allow", other, "pi2"]):
        line = run(joined, *args).err.splitlines()[-1]
        assert "does not have the cluster's signing key (run this on the board where" in line


def test_show_tells_no_secret(run: Run, home: Path) -> None:
    string = run(home, "invite").out.split()[0]
    secrets = [load_identity(home).keys.secret, load_signing_key(home).seed]
    secrets += [string, parse_invite(string).keys.secret]
    shown = run(home, "show").out + run(home, "show", "--json").out
    assert [secret for secret in secrets if secret in shown] == []
    assert len(json.loads(run(home, "show", "--json").out)["invites"]) == 1


def test_invites_at_another_address(run: Run, home: Path) -> None:
    ran = run(home, "invite", "--address", "pi0.local", "--json")
    assert ran.err == ""
    assert json.loads(ran.out)["address"] == "pi0.local:7433"
    assert "0.0.0.0" in failure(run(home, "invite", "--address", "0.0.0.0:1"))


def test_an_invite_names_where_the_daemon_listens(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for listens in ("192.0.2.7:9000", "0.0.0.0:9000"):
        with published_daemon(home, parse_address(listens), 1):
            told = json.loads(run(home, "invite", "--json").out)
        assert told["addresses"] == ["192.0.2.7:9000"]
    with published_daemon(home, Address("127.0.0.1", 9000), 1):
        assert "where no other board can reach it" in failure(run(home, "invite"))


def test_a_board_on_no_network_asks_for_an_address(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interfaces, "interfaces", list)
    assert "HOST:PORT" in failure(run(home, "invite"))


@pytest.mark.parametrize("ttl", ["5", "5y", "-1h", "59s", "31d", "1e9h", "١h"])
def test_bad_times_exit_2(run: Run, home: Path, ttl: str) -> None:
    ran = run(home, "invite", f"--ttl={ttl}")
    assert ran.code == 2
    assert "--ttl: " in failure(ran)


def test_a_key_that_was_carried_is_allowed(run: Run, home: Path, tmp_path: Path) -> None:
    ran = run(tmp_path / "pi1", "init", "--roster", str(home / "roster.json"), "--board", "pi1")
    assert ran.code == 0
    public = load_identity(tmp_path / "pi1").keys.public
    assert ran.out.splitlines()[-1].startswith("picoedge keys allow ")
    assert "not allowed (yet)" in run(tmp_path / "pi1", "show").out
    assert run(home, "allow", public, "pi1", "--json").code == 0
    assert RosterFile(home).roster.name_of(public) == "pi1"
    assert run(home, "allow", public, "kitchen").out.startswith("allowed kitchen: ")
    assert RosterFile(home).roster.name_of(public) == "kitchen"
    assert "another board is called pi0" in failure(run(home, "allow", KeyPair.new().public, "pi0"))


def test_a_board_does_not_revoke_itself_by_mistake(run: Run, home: Path) -> None:
    public = load_identity(home).keys.public
    for board in ("pi0", public):
        ran = run(home, "revoke", board)
        assert ran.code == 2
        assert "pi0 is this board (add --force" in failure(ran)
    ran = run(home, "revoke", public, "--force", "--json")
    assert json.loads(ran.out) == {"name": "pi0", "public": public, "state": "revoked"}
    assert not RosterFile(home).roster.is_allowed(public)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["revoke", "pi"], "did you mean: pi0?"),
        (["revoke", "zzzzzz"], "picoedge keys show lists them"),
        (["allow", "x", "pi1"], "not a public key"),
        (["allow", KeyPair.new().public, "a b"], "no name for a board"),
        (["allow"], "PUBLIC"),
        (["nope"], "no such command"),
        (["show", "--jason"], "--json"),
        (["init", "--roster", "no-such-folder/file"], "--roster"),
    ],
)
def test_wrong_command_lines_exit_2(run: Run, home: Path, args: list[str], said: str) -> None:
    ran = run(home, *args)
    assert ran.code == 2
    assert said in failure(ran)


@pytest.mark.parametrize("args", [["show"], ["invite"], ["revoke", "x"]])
def test_a_board_in_no_cluster_is_told(run: Run, tmp_path: Path, args: list[str]) -> None:
    ran = run(tmp_path / "c", *args)
    assert ran.code == 1
    assert "in no cluster (picoedge keys init" in failure(ran)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_bad_roster_makes_no_identity(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    ran = run(tmp_path / "c", "init", "--roster", str(tmp_path / "r.json"), "--board", "x")
    assert ran.code == 1
    assert "roster" in failure(ran) or "r.json" in failure(ran)
    assert not (tmp_path / "c").exists()


def test_a_folder_that_cannot_be_made_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = run(tmp_path / "file" / "c", "init", "--board", "x")
    assert ran.code == 1
    assert "PICOEDGE_CLUSTER" in failure(ran)


def test_bare_keys_shows_its_help(run: Run, tmp_path: Path) -> None:
    ran = run(tmp_path)
    assert ran.code == 2
    assert "Commands:" in ran.err


def test_debug_is_taken_after_the_subcommand(run: Run, tmp_path: Path) -> None:
    assert "Traceback" in run(tmp_path / "c", "show", "--debug").err


def test_help_needs_no_sockets(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zmq", None)
    for name in [name for name in sys.modules if name.startswith("picoedge.mesh.")]:
        monkeypatch.delitem(sys.modules, name)
    assert run(tmp_path, "invite", "--help").code == 0
