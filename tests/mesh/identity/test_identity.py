"""Identities, the roster on disk, invites: durable, private, and used once."""

from __future__ import annotations

import base64
import fcntl
import json
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.errors import AccessError, ProtocolError, StorageError, UsageError
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
from picoedge.mesh.identity.identity import (
    Identity,
    KeyPair,
    SigningKey,
    board_name_of,
    cluster_folder,
    decode_z85,
    is_key,
    load_identity,
    load_signing_key,
    verifies,
)
from picoedge.mesh.identity.roster import RosterFile

NOW = 1_000_000.0
ADDRESS = "192.0.2.7:7433"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of the board that made a cluster."""
    found_cluster(tmp_path / "home", "home", "pi0")
    return tmp_path / "home"


def issue(home: Path, ttl_s: float = 60) -> str:
    return Invites(home).issue(ADDRESS, RosterFile(home).roster.cluster.key, ttl_s, NOW)


def join(home: Path, folder: Path, name: str = "pi1") -> Identity:
    """What two daemons do, without a network between them."""
    invitation, keys = parse_invite(issue(home)), joining_keys(folder)
    signing, one_time = load_signing_key(home), invitation.keys.public
    answer = admit(RosterFile(home), signing, one_time, keys.public, name, NOW)
    return accept(folder, invitation, json.loads(json.dumps(answer.to_json())), keys)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- keys ----------------------------------------------------------------------------------------


def test_secrets_are_in_no_text() -> None:
    keys, signing = KeyPair.new(), SigningKey.new()
    assert keys.secret not in f"{keys!r} {keys}"
    assert signing.seed not in f"{signing!r} {signing}"
    assert keys.public in repr(keys)


def test_a_pair_follows_from_its_secret() -> None:
    keys = KeyPair.new()
    assert KeyPair.of_secret(keys.secret) == keys
    assert is_key(keys.public)
    assert not keys.public.startswith("-")


def test_signatures_hold_for_their_message_and_key_only() -> None:
    one, other = SigningKey.new(), SigningKey.new()
    signature = one.sign(b"message")
    assert verifies(one.public, b"message", signature)
    assert not verifies(one.public, b"massage", signature)
    assert not verifies(other.public, b"message", signature)
    assert not verifies(one.public, b"message", signature[:-5])
    assert not verifies("0" * 40, b"message", signature)


@given(st.binary(max_size=40).map(lambda data: data.decode("latin-1")) | st.text() | st.none())
def test_what_is_no_key_is_none(text: str | None) -> None:
    assert decode_z85(text, 32) is None


# -- identity ------------------------------------------------------------------------------------


def test_the_folder_is_the_user_s_unless_named() -> None:
    assert cluster_folder({"PICOEDGE_CLUSTER": "/c"}) == Path("/c")
    assert cluster_folder({"XDG_CONFIG_HOME": "/x"}) == Path("/x/picoedge/cluster")
    assert cluster_folder({}) == Path.home() / ".config/picoedge/cluster"


def test_a_cluster_of_one_board(home: Path) -> None:
    identity, roster = load_identity(home), RosterFile(home).roster
    assert dict(roster.members) == {identity.keys.public: "pi0"}
    assert load_signing_key(home).public == roster.cluster.key
    assert identity.keys.secret not in repr(identity)


def test_what_is_kept_is_for_this_user_alone(home: Path, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        found_cluster(tmp_path / "open", "home", "pi0")
        issue(tmp_path / "open")
    finally:
        os.umask(old)
    assert mode(tmp_path / "open") == 0o700
    files = {path.name: mode(path) for path in (tmp_path / "open").iterdir()}
    assert files == dict.fromkeys(("board.json", "roster.json", "invites.json", "lock"), 0o600)


def test_a_cluster_is_never_overwritten(home: Path) -> None:
    before = {path: path.read_bytes() for path in home.iterdir()}
    with pytest.raises(AccessError, match="in a cluster already") as error:
        found_cluster(home, "other", "pi9")
    assert "remove that folder" in error.value.hint
    assert {path: path.read_bytes() for path in home.iterdir()} == before


@pytest.mark.parametrize(
    ("host", "name"),
    [("pi4", "pi4"), ("Pi_4.local", "Pi_4"), ("é", "board"), ("", "board"), ("x" * 60, "x" * 32)],
)
def test_a_board_is_named_after_its_host(host: str, name: str) -> None:
    assert board_name_of(host) == name


def test_a_board_in_no_cluster_is_told_how_to_get_into_one(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="in no cluster") as error:
        load_identity(tmp_path)
    assert "picoedge keys init" in error.value.hint
    assert "picoedge run --join" in error.value.hint


def test_keys_that_others_can_read_are_refused(home: Path) -> None:
    (home / "board.json").chmod(0o640)
    with pytest.raises(AccessError, match="others can read") as error:
        load_identity(home)
    assert f"chmod 600 {home}" in error.value.hint


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", "[" * 100_000, "\xff", '{"name": "x"}', " " * (1 << 21)]
)
@pytest.mark.parametrize("file", ["board.json", "roster.json"])
def test_damaged_files_are_named(home: Path, file: str, text: str) -> None:
    (home / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(AccessError, match=file) as error:
        load_identity(home) if file == "board.json" else RosterFile(home)
    assert error.value.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "a b"), ("public", KeyPair.new().public), ("secret", "x"), ("signing", 3)],
    ids=["name", "public", "secret", "signing"],
)
def test_an_identity_that_does_not_fit_together_is_damaged(
    home: Path, field: str, value: object
) -> None:
    fields = json.loads((home / "board.json").read_bytes())
    (home / "board.json").write_text(json.dumps({**fields, field: value}))
    with pytest.raises(AccessError, match="damaged") as error:
        load_identity(home)
    assert fields["secret"] not in str(error.value)


# -- the roster on disk --------------------------------------------------------------------------


def test_a_daemon_notices_what_the_command_line_wrote(home: Path, tmp_path: Path) -> None:
    daemon = RosterFile(home)
    assert not daemon.reload_if_changed()
    joined = join(home, tmp_path / "pi1")
    assert daemon.reload_if_changed()
    assert daemon.roster.is_allowed(joined.keys.public)
    signing = load_signing_key(home)
    RosterFile(home).update(lambda roster: roster.with_revoke(signing, joined.keys.public))
    assert daemon.reload_if_changed()
    assert not daemon.roster.is_allowed(joined.keys.public)
    assert not daemon.reload_if_changed()


def test_an_older_file_takes_no_revocation_back(home: Path, tmp_path: Path) -> None:
    joined, signing = join(home, tmp_path / "pi1"), load_signing_key(home)
    older, daemon = (home / "roster.json").read_bytes(), RosterFile(home)
    daemon.update(lambda roster: roster.with_revoke(signing, joined.keys.public))
    (home / "roster.json").write_bytes(older)
    assert not daemon.reload_if_changed()
    assert not daemon.roster.is_allowed(joined.keys.public)
    daemon.update(lambda roster: roster)
    assert RosterFile(home).roster == daemon.roster


def test_a_bad_file_is_told_once_and_what_was_known_stays(home: Path) -> None:
    daemon = RosterFile(home)
    known = daemon.roster
    (home / "roster.json").write_text("{")
    with pytest.raises(AccessError, match=r"roster\.json: damaged"):
        daemon.reload_if_changed()
    assert not daemon.reload_if_changed()
    assert daemon.roster == known


def test_gossip_is_merged_saved_and_told_once(home: Path, tmp_path: Path) -> None:
    join(home, tmp_path / "pi1")
    here, there = RosterFile(home), RosterFile(tmp_path / "pi1")
    assert not there.take(here.roster.to_json())
    signing, newcomer = load_signing_key(home), KeyPair.new().public
    here.update(lambda roster: roster.with_allow(signing, newcomer, "pi2"))
    assert there.take(here.roster.to_json())
    assert not there.take(here.roster.to_json())
    assert RosterFile(tmp_path / "pi1").roster == here.roster
    found_cluster(tmp_path / "other", "home", "pi0")
    before = (tmp_path / "pi1" / "roster.json").read_bytes()
    for hostile in (RosterFile(tmp_path / "other").roster.to_json(), {}, None):
        with pytest.raises((AccessError, ProtocolError)):
            there.take(hostile)
    assert (tmp_path / "pi1" / "roster.json").read_bytes() == before


def _allow_many(home: Path, start: int, count: int) -> None:
    file, signing = RosterFile(home), load_signing_key(home)
    for number in range(start, start + count):
        public, name = KeyPair.new().public, f"b{number}"
        file.update(lambda roster, p=public, n=name: roster.with_allow(signing, p, n))  # type: ignore[misc]


def _run_at_once(target: Any, *arguments: tuple[Any, ...]) -> None:
    """Several processes; each must succeed."""
    spawning = multiprocessing.get_context("spawn")
    running = [spawning.Process(target=target, args=each) for each in arguments]
    for process in running:
        process.start()
    for process in running:
        process.join(30)
        assert process.exitcode == 0


def test_processes_that_write_at_once_lose_nothing(home: Path) -> None:
    _run_at_once(_allow_many, (home, 0, 8), (home, 8, 8))
    members = RosterFile(home).roster.members
    assert set(members.values()) == {"pi0", *(f"b{number}" for number in range(16))}


def test_a_write_that_fails_leaves_the_old_roster(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, file = (home / "roster.json").read_bytes(), RosterFile(home)
    signing = load_signing_key(home)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        file.update(lambda roster: roster.with_allow(signing, KeyPair.new().public, "pi9"))
    assert (home / "roster.json").read_bytes() == before
    assert sorted(path.name for path in home.iterdir()) == ["board.json", "lock", "roster.json"]
    assert len(file.roster.members) == 1


def test_what_a_killed_writer_left_is_no_obstacle(home: Path) -> None:
    (home / ".roster.json.new").write_text('{"clus')
    _allow_many(home, 0, 1)
    assert len(RosterFile(home).roster.members) == 2
    assert not (home / ".roster.json.new").exists()


def _allow_and_tell(home: Path, told: Any) -> None:
    for number in range(10_000):
        _allow_many(home, number, 1)
        told.send(f"b{number}")


def test_a_writer_that_is_killed_leaves_a_whole_roster(home: Path) -> None:
    spawning = multiprocessing.get_context("spawn")
    hearing, telling = spawning.Pipe(duplex=False)
    writer = spawning.Process(target=_allow_and_tell, args=(home, telling))
    writer.start()
    said = {hearing.recv() for _ in range(5)}
    writer.kill()
    writer.join(30)
    assert said <= set(RosterFile(home).roster.members.values())
    _allow_many(home, 20_000, 1)
    hearing.close()
    telling.close()


def test_a_lock_that_stays_taken_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("picoedge.mesh.cluster_folder.LOCK_TIMEOUT_S", 0.05)
    with (home / "lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="lock: held"):
            RosterFile(home).update(lambda roster: roster)


# -- invites -------------------------------------------------------------------------------------


def test_an_invite_names_the_host_to_ask(home: Path) -> None:
    invitation = parse_invite(f"  {issue(home)}\n")
    assert invitation.address == ADDRESS
    assert invitation.server == load_identity(home).keys.public
    assert invitation.cluster == RosterFile(home).roster.cluster.key
    assert invitation.expires == NOW + 60
    assert Invites(home).is_open(invitation.keys.public, NOW)
    assert invitation.keys.secret not in repr(invitation)
    kept = "".join(path.read_text() for path in home.iterdir())
    assert invitation.keys.secret not in kept


def test_invites_end_and_are_forgotten(home: Path) -> None:
    first = parse_invite(issue(home, 60)).keys.public
    second = parse_invite(issue(home, 600)).keys.public
    invites = Invites(home)
    assert invites.open_until(NOW) == [NOW + 60, NOW + 600]
    assert invites.is_open(first, NOW + 59)
    assert not invites.is_open(first, NOW + 60)
    assert not invites.spend(first, NOW + 60)
    assert invites.spend(second, NOW + 60)
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
    _run_at_once(_spend_all, *((home, publics, result) for result in results))
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
        json.dumps({KeyPair.new().public: int(NOW) + 9 for _ in range(MAX_OPEN)})
    )
    with pytest.raises(AccessError, match="invites are open"):
        issue(home)
    assert Invites(home).open_until(NOW + 9) == []


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
def test_what_is_no_invite_is_refused(text: str) -> None:
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


# -- joining -------------------------------------------------------------------------------------


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
    assert there.take(here.roster.to_json())
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
