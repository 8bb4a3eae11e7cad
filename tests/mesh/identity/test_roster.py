"""The roster: signed entries, merged in any order, believed only with a signature."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.errors import AccessError, MeshError, ProtocolError
from picoedge.mesh.identity import roster as rosters
from picoedge.mesh.identity.identity import MAX_NAME, KeyPair, SigningKey, is_name, verifies
from picoedge.mesh.identity.roster import MAX_ENTRIES, Cluster, Entry, Roster

SIGNING = SigningKey.new()
EMPTY = Roster(Cluster("home", SIGNING.public))
BOARDS = [KeyPair.new().public for _ in range(4)]


def _entries() -> list[Entry]:
    """All that can be said of four boards: allowed, renamed, revoked."""
    found = []
    for number, public in enumerate(BOARDS):
        for name in (f"pi{number}", f"nano{number}"):
            allowed = EMPTY.with_allow(SIGNING, public, name)
            found += [*allowed.entries, *allowed.with_revoke(SIGNING, public).entries]
    return found


ENTRIES = _entries()


def holding(entries: list[Entry]) -> Roster:
    merged = EMPTY
    for entry in entries:
        merged = merged.merge(Roster(EMPTY.cluster, (entry,)))
    return merged


some_rosters = st.lists(st.sampled_from(ENTRIES)).map(holding)


@pytest.fixture
def two() -> Roster:
    return EMPTY.with_allow(SIGNING, BOARDS[0], "pi0").with_allow(SIGNING, BOARDS[1], "pi1")


# -- merging -------------------------------------------------------------------------------------


@given(some_rosters, some_rosters, some_rosters)
def test_merging_is_commutative_associative_and_idempotent(a: Roster, b: Roster, c: Roster) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(a) == a
    assert a.merge(EMPTY) == a == EMPTY.merge(a)
    assert a.merge(b).merge(b) == a.merge(b)


@given(some_rosters, some_rosters)
def test_a_key_revoked_in_one_roster_is_revoked_in_any_merge(a: Roster, b: Roster) -> None:
    merged = a.merge(b)
    for public in BOARDS:
        revoked = public in a.revoked or public in b.revoked
        assert (public in merged.revoked) is revoked
        assert merged.is_allowed(public) is (
            not revoked and (a.is_allowed(public) or b.is_allowed(public))
        )


@given(some_rosters, some_rosters)
def test_digests_are_equal_where_rosters_are(a: Roster, b: Roster) -> None:
    assert (a.digest == b.digest) is (a == b)


@given(some_rosters)
def test_json_is_read_back_the_same(roster: Roster) -> None:
    assert Roster.from_json(json.loads(json.dumps(roster.to_json()))) == roster


# -- saying something ----------------------------------------------------------------------------


def test_allowed_boards_are_members_by_name(two: Roster) -> None:
    assert dict(two.members) == {BOARDS[0]: "pi0", BOARDS[1]: "pi1"}
    assert two.is_allowed(BOARDS[0])
    assert not two.is_allowed(BOARDS[2])
    assert not two.is_allowed("")
    assert two.name_of(BOARDS[1]) == "pi1"
    assert two.name_of(BOARDS[2]) is None


def test_a_revoked_key_is_out_for_good_and_its_name_free(two: Roster) -> None:
    without = two.with_revoke(SIGNING, BOARDS[0])
    assert not without.is_allowed(BOARDS[0])
    assert dict(without.revoked) == {BOARDS[0]: "pi0"}
    assert without.with_revoke(SIGNING, BOARDS[0]) is without
    with pytest.raises(AccessError, match="pi0 is revoked, for good"):
        without.with_allow(SIGNING, BOARDS[0], "pi0")
    assert without.with_allow(SIGNING, BOARDS[2], "pi0").is_allowed(BOARDS[2])


def test_a_board_that_is_allowed_again_with_another_name_is_renamed(two: Roster) -> None:
    assert two.with_allow(SIGNING, BOARDS[0], "pi0") is two
    renamed = two.with_allow(SIGNING, BOARDS[0], "kitchen")
    assert renamed.name_of(BOARDS[0]) == "kitchen"
    assert two.merge(renamed) == renamed


def test_names_are_unique(two: Roster) -> None:
    with pytest.raises(AccessError, match="another board is called pi1"):
        two.with_allow(SIGNING, BOARDS[2], "pi1")
    with pytest.raises(AccessError, match="another board is called pi1"):
        two.with_allow(SIGNING, BOARDS[0], "pi1")
    assert two.free_name("pi2") == "pi2"
    assert two.free_name("pi1") == "pi1-2"
    third = two.with_allow(SIGNING, BOARDS[2], "pi1-2")
    assert third.free_name("pi1") == "pi1-3"
    long = "x" * MAX_NAME
    assert is_name(two.with_allow(SIGNING, BOARDS[2], long).free_name(long))


def test_two_boards_of_one_name_are_shown_by_two_names(two: Roster) -> None:
    """Each was let in by a copy of the signing key, before the rosters were merged."""
    one = Roster(two.cluster).with_allow(SIGNING, BOARDS[0], "raspberrypi")
    other = Roster(two.cluster).with_allow(SIGNING, BOARDS[1], "raspberrypi")
    merged = one.merge(other).with_allow(SIGNING, BOARDS[2], "desk")
    shown = merged.shown_names
    assert shown[BOARDS[2]] == "desk"
    assert len(set(shown.values())) == 3
    assert all(is_name(name) for name in shown.values())
    assert {name[:12] for name in shown.values()} == {"raspberrypi-", "desk"}
    again = one.with_revoke(SIGNING, BOARDS[0]).with_allow(SIGNING, BOARDS[1], "raspberrypi")
    assert again.shown_names[BOARDS[1]] == "raspberrypi"
    assert again.shown_names[BOARDS[0]].startswith("raspberrypi-")


@pytest.mark.parametrize("name", ["", " ", "-x", "a b", "a\n", "\x1b[31m", "é", "x" * 33, "a/b"])
def test_names_that_could_be_taken_for_something_else_are_refused(two: Roster, name: str) -> None:
    with pytest.raises(AccessError, match="no name for a board"):
        two.with_allow(SIGNING, BOARDS[2], name)


def test_only_the_cluster_s_key_can_say_anything(two: Roster) -> None:
    other = SigningKey.new()
    with pytest.raises(AccessError, match="not the signing key"):
        two.with_allow(other, BOARDS[2], "pi2")
    with pytest.raises(AccessError, match="not the signing key"):
        two.with_revoke(other, BOARDS[0])


def test_a_key_that_was_never_in_cannot_be_revoked(two: Roster) -> None:
    with pytest.raises(AccessError, match="no board of this cluster"):
        two.with_revoke(SIGNING, BOARDS[3])


def test_a_full_roster_says_so_and_still_revokes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rosters, "MAX_ENTRIES", 1)
    full = EMPTY.with_allow(SIGNING, BOARDS[0], "pi0")
    with pytest.raises(AccessError, match="at most 1"):
        full.with_allow(SIGNING, BOARDS[1], "pi1")
    assert not full.with_revoke(SIGNING, BOARDS[0]).is_allowed(BOARDS[0])


# -- what others say -----------------------------------------------------------------------------


def altered(two: Roster, **fields: object) -> Any:
    value: Any = copy.deepcopy(two.to_json())
    value["entries"][0].update(fields)
    return value


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "revoke"},
        {"public": BOARDS[3]},
        {"name": "pi9"},
        {"serial": 7},
        {"signature": "0" * 80},
    ],
)
def test_an_altered_entry_is_not_believed(two: Roster, fields: dict[str, object]) -> None:
    value = altered(two, **fields)
    value["entries"].sort(key=lambda entry: entry["public"])
    for known in (None, EMPTY, two):
        with pytest.raises(AccessError, match="not signed by the cluster"):
            Roster.from_json(value, known)


def test_a_signature_of_one_entry_is_not_another_s(two: Roster) -> None:
    value: Any = two.to_json()
    first, second = value["entries"]
    first["signature"], second["signature"] = second["signature"], first["signature"]
    with pytest.raises(AccessError, match="not signed"):
        Roster.from_json(value)


def test_two_clusters_never_mix(two: Roster) -> None:
    signing = SigningKey.new()
    foreign = Roster(Cluster("home", signing.public)).with_allow(signing, BOARDS[2], "pi2")
    renamed = Roster(Cluster("away", SIGNING.public), two.entries)
    for other in (foreign, renamed):
        with pytest.raises(AccessError, match="another cluster"):
            two.merge(other)
        with pytest.raises(AccessError, match="another cluster"):
            Roster.from_json(other.to_json(), two)
    assert two.cluster.tag != foreign.cluster.tag
    moved: Any = foreign.to_json()
    moved["cluster"] = two.to_json()["cluster"]
    with pytest.raises(AccessError, match="not signed"):
        Roster.from_json(moved, two)
    with pytest.raises(AccessError, match="not signed"):
        Roster.from_json(renamed.to_json())


malformed = [
    None, 3, "roster", [], {}, {"cluster": {}, "entries": []}, {"entries": []},
    {**EMPTY.to_json(), "more": 1},
    {**EMPTY.to_json(), "entries": {}},
    {**EMPTY.to_json(), "entries": [None]},
    {**EMPTY.to_json(), "entries": [{}] * (MAX_ENTRIES + 1)},
    {**EMPTY.to_json(), "cluster": {"name": "home", "key": "short"}},
    {**EMPTY.to_json(), "cluster": {"name": "\x1b[2J", "key": SIGNING.public}},
]  # fmt: skip


@pytest.mark.parametrize("value", malformed)
def test_malformed_rosters_are_refused(value: object) -> None:
    with pytest.raises(ProtocolError):
        Roster.from_json(value)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "maybe"}, {"kind": ["allow"]}, {"kind": None},
        {"public": "x"}, {"public": 3}, {"public": "~" * 40}, {"public": "#" * 40},
        {"name": 3}, {"name": "x" * 33}, {"name": "a\nb"}, {"name": {}},
        {"serial": 0}, {"serial": True}, {"serial": 1.0}, {"serial": 1 << 60}, {"serial": "1"},
        {"signature": ""}, {"signature": None}, {"signature": "x" * 79}, {"more": 1},
    ],
)  # fmt: skip
def test_malformed_entries_are_refused(two: Roster, fields: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        Roster.from_json(altered(two, **fields), two)


def test_entries_come_once_and_in_order(two: Roster) -> None:
    value: Any = two.to_json()
    for entries in (value["entries"][::-1], [value["entries"][0]] * 2):
        with pytest.raises(ProtocolError, match="in the order"):
            Roster.from_json({**value, "entries": entries})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.sampled_from(["cluster", "entries", "kind", "public", "name", "serial"]), json_values)
def test_no_value_anywhere_does_more_than_be_refused(field: str, value: object) -> None:
    told: Any = copy.deepcopy(EMPTY.with_allow(SIGNING, BOARDS[0], "pi0").to_json())
    (told if field in told else told["entries"][0])[field] = value
    try:
        Roster.from_json(told)
    except MeshError:
        return
    assert value in ([], "pi0", "allow", 1, BOARDS[0])


def test_the_same_roster_again_costs_no_verification(
    two: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counting(public: str, message: bytes, signature: str) -> bool:
        asked.append(message)
        return verifies(public, message, signature)

    monkeypatch.setattr(rosters, "verifies", counting)
    assert Roster.from_json(two.to_json(), two) == two
    assert asked == []
    three = two.with_allow(SIGNING, BOARDS[2], "pi2")
    assert Roster.from_json(three.to_json(), two) == three
    assert len(asked) == 1
