"""Invites: bounded in time and number, spent once, refused when altered; joining by them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from identity_homes import ADDRESS, NOW, UNIX, issue, join, mode, run_at_once

from picoedge.errors import AccessError, ProtocolError, UsageError
from picoedge.mesh.identity.admission import (
    INVITE_PREFIX,
    MAX_OPEN,
    Invites,
    accept,
    admit,
    await_allow,
    found_cluster,
    joining_keys,
    parse_invite,
)
from picoedge.mesh.identity.identity import KeyPair, load_identity, load_signing_key
from picoedge.mesh.identity.roster import RosterFile


def test_an_invite_names_the_host_to_ask(home: Path) -> None:
    invitation = parse_invite(f"  {issue(home)}\n")
    assert invitation.addresses == (ADDRESS,)
    assert invitation.server == load_identity(home).keys.public
    assert invitation.cluster == RosterFile(home).roster.cluster.key
    assert invitation.expires == UNIX + 60
    assert Invites(home).is_open(invitation.keys.public, NOW)
    assert invitation.keys.secret not in repr(invitation)
    kept = "".join(path.read_text() for path in home.iterdir())
    assert invitation.keys.secret not in kept


def test_an_invite_may_name_several_addresses(home: Path) -> None:
    cluster = RosterFile(home).roster.cluster.key
    several = "10.0.0.4:9000,[fd00::4]:9000,[fe80::1%eth0]:9000"
    string = Invites(home).issue(several, cluster, 60, NOW)
    assert parse_invite(string).addresses == tuple(several.split(","))
    for bad in ("", ",", "10.0.0.4:0", "[::]:9000", "10.0.0.4:1,0.0.0.0:1", "10.0.0.4:1," * 9):
        with pytest.raises(UsageError):
            Invites(home).issue(bad, cluster, 60, NOW)


def test_invites_end_and_are_forgotten(home: Path) -> None:
    first = parse_invite(issue(home, 60)).keys.public
    second = parse_invite(issue(home, 600)).keys.public
    invites = Invites(home)
    assert invites.open_until(NOW) == [UNIX + 60, UNIX + 600]
    assert invites.is_open(first, NOW.after(59))
    assert not invites.is_open(first, NOW.after(60))
    assert not invites.spend(first, NOW.after(60))
    assert invites.spend(second, NOW.after(60))
    assert first not in (home / "invites.json").read_text()


def test_an_invite_is_spent_once_and_for_good(home: Path) -> None:
    public = parse_invite(issue(home)).keys.public
    assert Invites(home).spend(public, NOW)
    assert not Invites(home).spend(public, NOW)
    assert not Invites(home).is_open(public, NOW)
    assert not Invites(home).spend(KeyPair.new().public, NOW)


def _spend_all(home: Path, publics: list[str], result: Path) -> None:
    spent = [public for public in publics if Invites(home).spend(public, NOW)]
    result.write_text(json.dumps(spent))


def test_processes_that_race_spend_each_invite_once(home: Path, tmp_path: Path) -> None:
    publics = [parse_invite(issue(home)).keys.public for _ in range(12)]
    results = [tmp_path / name for name in "ab"]
    run_at_once(_spend_all, *((home, publics, result) for result in results))
    spent = [public for result in results for public in json.loads(result.read_text())]
    assert sorted(spent) == sorted(publics)


def test_a_daemon_notices_invites_and_their_end(home: Path) -> None:
    daemon = Invites(home)
    assert not daemon.is_open(KeyPair.new().public, NOW)
    one, other = (parse_invite(issue(home)).keys.public for _ in range(2))
    assert daemon.is_open(one, NOW)
    assert daemon.is_open(other, NOW)
    assert Invites(home).spend(one, NOW)
    assert not daemon.is_open(one, NOW)
    assert daemon.is_open(other, NOW)
    (home / "invites.json").unlink()
    assert not daemon.is_open(other, NOW)


def test_open_invites_are_bounded(home: Path) -> None:
    (home / "invites.json").write_text(
        json.dumps({KeyPair.new().public: UNIX + 9 for _ in range(MAX_OPEN)})
    )
    with pytest.raises(AccessError, match="invites are open"):
        issue(home)
    assert Invites(home).open_until(NOW.after(9)) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"x": 1}', f'{{"{"a" * 40}": "x"}}'])
def test_a_damaged_list_of_invites_opens_nothing(home: Path, text: str) -> None:
    public = parse_invite(issue(home)).keys.public
    (home / "invites.json").write_text(text)
    assert not Invites(home).is_open(public, NOW)
    with pytest.raises(AccessError, match=r"invites\.json") as error:
        issue(home)
    assert "remove" in error.value.hint


def test_only_the_board_with_the_signing_key_invites(home: Path, tmp_path: Path) -> None:
    join(home, tmp_path / "pi1")
    with pytest.raises(AccessError, match="signing key") as error:
        issue(tmp_path / "pi1")
    assert "where picoedge keys init made the cluster" in error.value.hint


@pytest.mark.parametrize("address", ["", "a b:1", "0.0.0.0:7433", "[::]:1", "x:0", "x:99999"])
def test_addresses_that_cannot_be_dialled(home: Path, address: str) -> None:
    with pytest.raises(UsageError):
        Invites(home).issue(address, RosterFile(home).roster.cluster.key, 60, NOW)


def encoded(fields: object) -> str:
    return INVITE_PREFIX + base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()


def decoded(string: str) -> dict[str, Any]:
    text = string[len(INVITE_PREFIX) :]
    fields: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return fields


@pytest.mark.parametrize(
    "change",
    [
        {"address": "0.0.0.0:1"}, {"address": "x"}, {"address": 3}, {"address": "a\n:1"},
        {"server": "x"}, {"server": None}, {"secret": "~" * 40}, {"secret": []},
        {"expires": "1"}, {"expires": True}, {"expires": -1}, {"expires": 1e9},
        {"cluster": ""}, {"more": 1}, {"address": "x" * 2000 + ":1"},
    ],
)  # fmt: skip
def test_altered_invites_are_refused_without_repeating_them(
    home: Path, change: dict[str, object]
) -> None:
    fields = decoded(issue(home))
    with pytest.raises(UsageError, match="cut off or altered") as error:
        parse_invite(encoded({**fields, **change}))
    assert fields["secret"] not in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "x", INVITE_PREFIX, f"{INVITE_PREFIX}!!", f"{INVITE_PREFIX}é", "picoedge-join"]
)
def test_a_text_that_is_no_invite_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invite"):
        parse_invite(text)


def test_a_cut_off_invite_is_refused(home: Path) -> None:
    string = issue(home)
    for length in range(len(string)):
        with pytest.raises(UsageError):
            parse_invite(string[:length])


@given(st.binary())
def test_no_bytes_in_an_invite_do_more_than_be_refused(data: bytes) -> None:
    with pytest.raises(UsageError):
        parse_invite(INVITE_PREFIX + base64.urlsafe_b64encode(data).decode())


def test_a_board_joins_by_its_invite(home: Path, tmp_path: Path) -> None:
    joined = join(home, tmp_path / "pi1")
    assert load_identity(tmp_path / "pi1") == joined
    assert RosterFile(tmp_path / "pi1").roster == RosterFile(home).roster
    assert RosterFile(home).roster.name_of(joined.keys.public) == "pi1"
    assert mode(tmp_path / "pi1" / "board.json") == 0o600
    assert not (tmp_path / "pi1" / "joining.json").exists()


def test_a_second_board_of_one_name_gets_a_number(home: Path, tmp_path: Path) -> None:
    assert join(home, tmp_path / "a", "pi0").name == "pi0-2"
    assert join(home, tmp_path / "b", "pi0").name == "pi0-3"


def test_a_join_whose_answer_was_lost_is_tried_again_with_the_same_keys(
    home: Path, tmp_path: Path
) -> None:
    signing, keys = load_signing_key(home), joining_keys(tmp_path / "pi1")
    lost = parse_invite(issue(home)).keys.public
    admit(RosterFile(home), signing, lost, keys.public, "pi1", NOW)
    assert join(home, tmp_path / "pi1").name == "pi1"
    assert sorted(RosterFile(home).roster.members.values()) == ["pi0", "pi1"]


def test_an_invite_admits_one_board_and_changes_no_other(home: Path) -> None:
    signing, first = load_signing_key(home), parse_invite(issue(home)).keys.public
    admit(RosterFile(home), signing, first, load_identity(home).keys.public, "evil", NOW)
    assert list(RosterFile(home).roster.members.values()) == ["pi0"]
    with pytest.raises(AccessError, match="used up"):
        admit(RosterFile(home), signing, first, KeyPair.new().public, "pi2", NOW)


@pytest.mark.parametrize(("public", "name"), [("x", "pi1"), (None, "\x1b[2J"), (None, "x" * 99)])
def test_a_malformed_request_spends_nothing(home: Path, public: str | None, name: str) -> None:
    one_time = parse_invite(issue(home)).keys.public
    for key in (public or KeyPair.new().public, one_time):
        with pytest.raises(ProtocolError):
            admit(RosterFile(home), load_signing_key(home), one_time, key, name, NOW)
    assert Invites(home).is_open(one_time, NOW)


def test_answers_that_are_not_the_inviting_cluster_s_are_refused(
    home: Path, tmp_path: Path
) -> None:
    invitation, keys = parse_invite(issue(home)), KeyPair.new()
    other = found_cluster(tmp_path / "other", "home", "pi0")
    foreign = RosterFile(other.folder)
    signing = load_signing_key(other.folder)
    foreign.update(lambda roster: roster.with_allow(signing, keys.public, "pi1"))
    without_us = RosterFile(home).roster
    for answer in (foreign.roster.to_json(), without_us.to_json(), {}, None):
        with pytest.raises((AccessError, ProtocolError)):
            accept(tmp_path / "pi1", invitation, answer, keys)
    assert not (tmp_path / "pi1").exists()


def test_a_board_can_be_allowed_by_a_key_that_was_carried(home: Path, tmp_path: Path) -> None:
    identity = await_allow(tmp_path / "pi1", RosterFile(home).roster.to_json(), "pi1")
    there = RosterFile(tmp_path / "pi1")
    assert not there.roster.is_allowed(identity.keys.public)
    here, signing = RosterFile(home), load_signing_key(home)
    here.update(lambda roster: roster.with_allow(signing, identity.keys.public, "pi1"))
    assert there.take(there.read(here.roster.to_json()))
    assert there.roster.is_allowed(identity.keys.public)


def test_a_board_in_a_cluster_joins_no_other(home: Path, tmp_path: Path) -> None:
    join(home, tmp_path / "pi1")
    with pytest.raises(AccessError, match="in a cluster already"):
        joining_keys(tmp_path / "pi1")
    invitation, keys = parse_invite(issue(home)), KeyPair.new()
    signing, one_time = load_signing_key(home), invitation.keys.public
    answer = admit(RosterFile(home), signing, one_time, keys.public, "pi1", NOW)
    with pytest.raises(AccessError, match="in a cluster already"):
        accept(tmp_path / "pi1", invitation, answer.to_json(), keys)
