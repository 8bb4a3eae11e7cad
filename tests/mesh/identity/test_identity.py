"""Keys and identities: private to their user, whole or refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from identity_homes import issue, mode

from picoedge.errors import AccessError
from picoedge.mesh.cluster_folder import cluster_folder
from picoedge.mesh.identity.admission import found_cluster
from picoedge.mesh.identity.identity import (
    KeyPair,
    SigningKey,
    board_name_of,
    decode_z85,
    is_key,
    load_identity,
    load_signing_key,
    verifies,
)
from picoedge.mesh.identity.roster import RosterFile


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
def test_a_text_that_is_no_key_decodes_to_none(text: str | None) -> None:
    assert decode_z85(text, 32) is None


def test_the_folder_is_the_user_s_unless_named(tmp_path: Path) -> None:
    there = str(tmp_path)
    assert cluster_folder({"PICOEDGE_CLUSTER": there}) == tmp_path
    assert cluster_folder({"XDG_CONFIG_HOME": there}) == tmp_path / "picoedge" / "cluster"
    assert cluster_folder({}) == Path.home() / ".config/picoedge/cluster"


def test_a_cluster_of_one_board(home: Path) -> None:
    identity, roster = load_identity(home), RosterFile(home).roster
    assert dict(roster.members) == {identity.keys.public: "pi0"}
    assert load_signing_key(home).public == roster.cluster.key
    assert identity.keys.secret not in repr(identity)


def test_files_of_the_cluster_folder_are_for_this_user_alone(home: Path, tmp_path: Path) -> None:
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
