"""Facts of boards and links as JSON: written facts are read back, and anything else is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from cluster_figures import board
from hypothesis import given
from hypothesis import strategies as st

from picoedge.errors import ProtocolError, UsageError
from picoedge.planner.topology import (
    BoardFacts,
    LinkFacts,
    Topology,
    board_from_json,
    read_topology,
    topology_from_json,
)

NEAR, FAR = LinkFacts(60e-6, 1e9), LinkFacts(1e-3, 37e6)
CLUSTER = Topology(
    (board("desk", key="k" * 40), board("shelf", numpy=True, read_io="mmap"), board("attic")),
    {(0, 1): NEAR, (1, 2): FAR},
    FAR,
    1,
)
FILE: dict[str, Any] = {
    "hub": "shelf",
    "link": {"latency_s": 1e-3, "bytes_per_s": 37e6},
    "links": [
        {"between": ["desk", "shelf"], "latency_s": 60e-6, "bytes_per_s": 1e9},
        {"between": ["attic", "shelf"], "latency_s": 1e-3, "bytes_per_s": 37e6},
    ],
    "boards": [dataclasses.asdict(each) for each in CLUSTER.boards],
}
LEAST: dict[str, Any] = {
    "name": "desk",
    "cores": 4,
    "compute_bytes_per_s": 4e9,
    "disk_bytes_per_s": 9e7,
    "budget_bytes": 1 << 29,
    "fixed_bytes": 60 << 20,
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def test_a_topology_comes_back_from_json() -> None:
    assert topology_from_json(json.loads(json.dumps(FILE))) == CLUSTER


def test_fields_that_are_left_out_have_their_defaults() -> None:
    facts = board_from_json(LEAST)
    assert facts == BoardFacts("desk", 4, 4e9, 9e7, 1 << 29, 60 << 20)
    text = json.dumps({"boards": [LEAST]})
    assert read_topology(text, "boards.json") == Topology((facts,), {}, None, 0)


def test_a_link_that_is_not_known_is_that_to_the_hub() -> None:
    links = {(0, 1): LinkFacts(1e-3, 1e8), (0, 2): LinkFacts(2e-3, 1e9)}
    three = Topology((board("a"), board("b"), board("c")), links)
    assert three.link_between(2, 1) == LinkFacts(2e-3, 1e8)
    assert three.link_between(2, 0) == links[0, 2]
    assert CLUSTER.link_between(2, 0) == FAR


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, value) for key in LEAST for value in (None, [], {}, "", True, float("nan"))],
        *[(key, -1) for key in LEAST],
        ("name", "x" * 65),
        ("name", "a\nb"),
        ("cores", 1.5),
        pytest.param("cores", 10**400, id="cores-huge"),
        ("compute_bytes_per_s", 0),
        ("compute_bytes_per_s", float("inf")),
        ("disk_bytes_per_s", "fast"),
        ("budget_bytes", 1 << 60),
        ("key", "short"),
        ("key", 3),
        ("read_io", "magic"),
        ("numpy", 1),
        ("prefill_gain", 0.5),
        ("message_s", 2),
        ("surprise", 1),
    ],
)
def test_a_board_that_makes_no_sense_is_refused(key: str, value: object) -> None:
    with pytest.raises(ProtocolError) as caught:
        board_from_json(LEAST | {key: value})
    assert caught.value.hint
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", LEAST)
def test_a_board_without_a_needed_field_is_refused(key: str) -> None:
    with pytest.raises(ProtocolError, match=key):
        board_from_json({k: v for k, v in LEAST.items() if k != key})


@pytest.mark.parametrize(
    "change",
    [
        {"boards": []},
        {"boards": [LEAST, LEAST]},
        {"boards": [LEAST] * 1000},
        {"boards": {}},
        {"boards": [LEAST | {"key": "k" * 40}, LEAST | {"name": "b", "key": "k" * 40}]},
        {"hub": "stranger"},
        {"hub": 0},
        {"link": {"latency_s": 1e-3}},
        {"link": {"latency_s": -1, "bytes_per_s": 1e8}},
        {"links": [{"between": ["desk"], "latency_s": 0, "bytes_per_s": 1e8}]},
        {"links": [{"between": ["desk", "desk"], "latency_s": 0, "bytes_per_s": 1e8}]},
        {"links": [{"between": ["desk", ["x"]], "latency_s": 0, "bytes_per_s": 1e8}]},
        {"links": "all"},
        {"more": 1},
    ],
)
def test_a_cluster_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        topology_from_json(FILE | change)


def test_the_hubs_links_are_needed() -> None:
    with pytest.raises(ProtocolError, match="desk and b"):
        topology_from_json({"boards": [LEAST, LEAST | {"name": "b"}]})


@given(json_values)
def test_no_json_does_more_than_be_refused(value: object) -> None:
    for read in (board_from_json, topology_from_json):
        with pytest.raises(ProtocolError):
            read(value)


@given(st.sampled_from([*LEAST, "key", "read_io", "numpy"]), json_values)
def test_no_field_does_more_than_be_refused(key: str, value: object) -> None:
    try:
        facts = board_from_json(LEAST | {key: value})
    except ProtocolError:
        return
    assert board_from_json(dataclasses.asdict(facts)) == facts


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "9" * 5000, '{"boards": 1}', " " * (1 << 21), "\ud800"]
)
def test_a_file_that_is_no_list_of_boards_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"boards\.json") as caught:
        read_topology(text, "boards.json")
    assert caught.value.hint
