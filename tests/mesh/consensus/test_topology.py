"""Ranges by uplink, and relays for links that are not there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from picoedge.mesh.consensus.configuration import Route
from picoedge.mesh.consensus.topology import routes, shares


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=8), st.integers(0, 300))
def test_every_segment_has_one_owner(uplinks: list[int], segments: int) -> None:
    found = shares(uplinks, segments)
    assert sum(found) == segments
    assert len(found) == len(uplinks)
    total = sum(uplinks)
    if total:
        assert all(
            abs(n - segments * rate / total) < 1 for n, rate in zip(found, uplinks, strict=True)
        )


def test_shares_follow_the_uplinks() -> None:
    assert shares([1, 3], 8) == (2, 6)
    assert shares([0, 0, 0], 8) == (3, 3, 2)
    assert shares([5, 0], 8) == (8, 0)


def test_no_route_where_all_hear_all() -> None:
    assert routes("abc", {"a": {"b", "c"}, "b": {"a", "c"}}, [1, 1, 1]) == ()


def test_the_relay_has_the_largest_uplink_of_those_that_hear_and_are_heard() -> None:
    hears = {
        "a": {"c", "d", "e"},
        "b": set("acde"),
        "c": set("abd"),
        "d": set("abce"),
        "e": set("acd"),
    }
    # a does not hear b; c and d hear b and are heard by a, e does not hear b.
    assert Route(1, 0, 3) in routes("abcde", hears, [9, 9, 2, 3, 8])
    assert Route(1, 0, 2) in routes("abcde", hears, [9, 9, 4, 3, 8])


def test_nobody_relays_for_a_board_that_nobody_hears() -> None:
    assert routes("abc", {"a": {"b"}, "b": {"a"}, "c": {"a", "b"}}, [1, 1, 1]) == ()
