"""Several daemons: they find, hear and outlive each other, and agree on the roster."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mesh_nodes import PATIENCE_S, Running, found, fresh_context, running

from picoedge.errors import AccessError, BoardLostError, MeshError
from picoedge.mesh.addresses import Address
from picoedge.mesh.identity.admission import Invitation, Invites, joining_keys, parse_invite
from picoedge.mesh.identity.identity import KeyPair, load_signing_key
from picoedge.mesh.identity.lifetime import Moment
from picoedge.mesh.node.join import ask_to_join, join
from picoedge.mesh.node.liveness import Change


@pytest.fixture
def context() -> Iterator[Any]:
    with fresh_context() as made:
        yield made


def test_boards_greet_and_hear_each_other(tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    bob = Running(second, ada.address)
    bob.node.peers.report = lambda: {"stalled_on": "disk"}
    with running(ada, bob):
        ada.wait_for(bob, Change.SLOWED)
        bob.wait_for(ada, Change.JOINED)
        report = ada.do(lambda: ada.node.peers.liveness.members[bob.key].report)
        assert report == {"stalled_on": "disk"}


def test_daemons_ask_each_other(tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    bob = Running(second, ada.address)
    for each in (ada, bob):
        each.node.rpc.on("name", lambda peer, body, each=each: {"name": each.identity.name})
    answers: list[Any] = []
    with running(ada, bob):
        ada.wait_for(bob, Change.JOINED)
        bob.wait_for(ada, Change.JOINED)
        for one, other in ((ada, bob), (bob, ada)):
            answered = lambda answer, one=one: (answers.append(answer), one._wake())  # noqa: E731
            one.do(lambda o=one, p=other, a=answered: o.node.rpc.ask(p.key, "name", {}, a))
            one.wait(lambda: bool(answers))
            assert answers.pop()["name"] == other.identity.name
        ada.do(lambda: ada.node.rpc.ask(KeyPair.new().public, "name", {}, answers.append))
        assert isinstance(answers[0], BoardLostError)


def test_a_stopped_board_says_so(tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    bob = Running(second, ada.address)
    with running(ada, bob):
        ada.wait_for(bob, Change.JOINED)
        bob.wait_for(ada, Change.JOINED)
        bob.end()
        ada.wait_for(bob, Change.LEFT)
    assert not ada.saw(bob.key, Change.DIED)


def test_silence_is_death_and_an_end_of_silence_a_return(tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    bob = Running(second, ada.address)
    released = threading.Event()
    with running(ada, bob):
        ada.wait_for(bob, Change.JOINED)
        bob.wait_for(ada, Change.JOINED)
        try:
            bob.node.rpc.loop.soon(lambda: released.wait(PATIENCE_S))  # libzmq's own thread goes on
            ada.wait_for(bob, Change.DIED)
        finally:
            released.set()
        ada.wait_for(bob, Change.RETURNED)
    assert not bob.saw(ada.key, Change.DIED), "a stopped board has not listened"


def test_a_restarted_daemon_is_another(tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    bob, again = Running(second, ada.address), Running(second, ada.address)
    with running(ada):
        with running(bob):
            ada.wait_for(bob, Change.JOINED)
        with running(again):
            ada.wait_for(bob, Change.RESTARTED)
        member = ada.do(lambda: ada.node.peers.liveness.members[bob.key])
    assert bob.node.peers.incarnation != again.node.peers.incarnation == member.incarnation


def test_addresses_and_the_roster_spread_from_board_to_board(tmp_path: Path) -> None:
    """cyd knows bob only, and bob ada: still ada and cyd meet, and hear of new members."""
    first, second, third = found(tmp_path, "ada", "bob", "cyd")
    ada = Running(first)
    bob = Running(second, ada.address)
    cyd = Running(third, bob.address)
    signing, dan = load_signing_key(first.folder), KeyPair.new().public
    with running(ada, bob, cyd):
        ada.wait_for(cyd, Change.JOINED)
        cyd.wait_for(ada, Change.JOINED)
        ada.do(lambda: ada.node.roster_file.update(lambda r: r.with_allow(signing, dan, "dan")))
        ada.do(ada.node.peers.roster_changed)
        for each in (bob, cyd):
            while not each.do(lambda e=each: e.node.roster.is_allowed(dan)):
                pass
        ada.do(lambda: ada.node.roster_file.update(lambda r: r.with_revoke(signing, bob.key)))
        cyd.wait_for(bob, Change.REVOKED)
        ada.wait_for(bob, Change.REVOKED)


def test_a_damaged_roster_of_our_own_is_no_fault_of_who_gossips(tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada, bob = Running(first), Running(second)
    with running(ada, bob):
        bob.do(lambda: bob.node.peers.hint(ada.key, ada.address))
        bob.wait_for(ada, Change.JOINED)
        (second.folder / "roster.json").write_text("{")
        bob.wait(lambda: any("roster.json: damaged" in line for line in bob.lines))
        signing, newcomer = load_signing_key(first.folder), KeyPair.new().public
        ada.node.roster_file.update(lambda roster: roster.with_allow(signing, newcomer, "cyd"))
        bob.wait(lambda: any("the roster of ada was not taken" in line for line in bob.lines))
        assert not any("dropped" in line for line in bob.lines)
        assert ada.key in bob.do(bob.node.rpc.connected)
        assert not bob.saw(ada.key, Change.DIED)


def test_boards_are_found_where_they_were(tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada, bob = Running(first), None
    with running(ada):
        bob = Running(second, ada.address)
        with running(bob):
            ada.wait_for(bob, Change.JOINED)
            bob.wait_for(ada, Change.JOINED)
            while not (second.folder / "peers.json").exists():
                bob.do(lambda: None)
        forgetful = Running(second)
        with running(forgetful):
            forgetful.wait_for(ada, Change.JOINED)


def test_names_are_looked_up_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    asked = threading.Event()

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        if host == "nowhere":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if host == "no..where":
            raise UnicodeError("label empty or too long")
        assert asked.wait(PATIENCE_S)
        return [(0, 0, 0, "", ("127.0.0.1", port))]

    names = Address("nowhere", 1), Address("no..where", 1), Address("slow", ada.address.port)
    bob = Running(second, *names)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with running(ada, bob):
        try:
            bob.wait(lambda: "nowhere: Name or service not known" in bob.lines)
            bob.wait(lambda: "no..where: label empty or too long" in bob.lines)
        finally:
            asked.set()  # until now the loop has gone on without an answer
        bob.wait_for(ada, Change.JOINED)


def test_two_clusters_do_not_see_each_other(tmp_path: Path, context: Any) -> None:
    ada = Running(found(tmp_path / "one", "ada")[0])
    eve = Running(found(tmp_path / "two", "eve", "fay")[0], ada.address)
    with running(ada, eve):
        with (
            ada.client(context, eve.identity.keys) as client,
            pytest.raises(AccessError, match="does not let this board in"),
        ):
            client.ask("roster")
        eve.do(lambda: eve.node.peers.hint(ada.key, ada.address))
        assert not eve.do(lambda: eve.node.peers.liveness.members)
    assert not ada.changes
    assert not eve.changes


def test_one_identity_on_two_boards_is_told(tmp_path: Path, context: Any) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    bob = Running(second, ada.address)
    with running(ada, bob):
        ada.wait_for(bob, Change.JOINED)
        body = {**bob.node.peers._own_hello(), "incarnation": 1}
        with (
            ada.client(context, first.keys) as client,
            pytest.raises(AccessError, match="two daemons run with the same identity"),
        ):
            client.ask("hello", body)
        ada.wait(lambda: any("same identity" in line for line in ada.lines))


# -- joining ---------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Running]:
    node = Running(found(tmp_path, "ada")[0])
    with running(node):
        yield node


def invitation(host: Running) -> Invitation:
    cluster = host.node.roster.cluster.key
    invites = Invites(host.identity.folder)
    return parse_invite(invites.issue(str(host.address), cluster, 60, Moment.now()))


def test_an_invite_lets_one_board_in(host: Running, tmp_path: Path, context: Any) -> None:
    invite = invitation(host)
    identity = join(context, tmp_path / "new", invite, "ada")
    assert identity.name == "ada-2"
    new = Running(identity)
    with running(new):
        new.wait_for(host, Change.JOINED)
        host.wait_for(new, Change.JOINED)
    with pytest.raises(AccessError, match="used up or too old"):
        join(context, tmp_path / "other", invite, "eve")


def test_a_clock_that_is_set_meanwhile_ends_no_invite(tmp_path: Path, context: Any) -> None:
    step_s = [0.0]

    def moment() -> Moment:
        now = Moment.now()
        return Moment(now.unix_s + step_s[0], now.boot_s, now.boot)

    host = Running(found(tmp_path, "ada")[0], moment=moment)
    with running(host):
        for number, years in enumerate((56, -56)):
            invite = invitation(host)
            step_s[0] = years * 365 * 86_400
            assert join(context, tmp_path / f"new{number}", invite, f"pi{number}").name


def test_a_join_that_was_cut_off_can_be_repeated(
    host: Running, tmp_path: Path, context: Any
) -> None:
    invite, keys = invitation(host), joining_keys(tmp_path / "new")
    ask_to_join(context, invite, "bob", keys)  # and the answer is lost
    assert join(context, tmp_path / "new", invite, "bob").name == "bob"


def test_an_invite_is_good_for_joining_only(host: Running, context: Any) -> None:
    invite = invitation(host)
    with (
        host.client(context, invite.keys) as client,
        pytest.raises(BoardLostError, match="connection ended"),
    ):
        client.ask("roster")
    host.wait(lambda: any("not of the cluster asks" in line for line in host.lines))


def test_a_malformed_joiner_does_not_spend_the_invite(
    host: Running, tmp_path: Path, context: Any
) -> None:
    invite = invitation(host)
    with host.client(context, invite.keys) as client, pytest.raises(MeshError):
        client.ask("join", {"public": "x" * 40, "name": "../../x"}, timeout_s=2)
    assert join(context, tmp_path / "new", invite, "bob").name == "bob"


def test_an_invite_without_an_answer(host: Running, tmp_path: Path, context: Any) -> None:
    invite = invitation(host)
    host.end()
    with pytest.raises(BoardLostError, match="nothing listens"):
        join(context, tmp_path / "new", invite, "bob", timeout_s=0.2)
