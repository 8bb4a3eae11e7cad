"""A hub's spec is checked by the board before any use."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shelf_models

from picoedge.cluster.spec import GroupSpec, RankSpec, spec_from_json
from picoedge.cluster.worker import check_shards
from picoedge.errors import ProtocolError
from picoedge.jobs.spec import read_kept
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Slice

KEYS = ["k" * 40, "l" * 40, "m" * 40]


def spec_of(*heads: range) -> GroupSpec:
    """A group over the tiny model, with these shards of the head on each rank."""
    attention, ffn = [range(1), range(1, 2), range(2, 3)], [range(2), range(2, 2), range(2, 2)]
    ranks = tuple(
        RankSpec(key, f"b{rank}", Slice(attention[rank], ffn[rank], head, owns_head=rank == 0))
        for rank, (key, head) in enumerate(zip(KEYS, heads, strict=True))
    )
    return GroupSpec("ab" * 8, 7, "cd" * 32, "tiny", 1, ranks, 64, 8)


ALL_AT_THE_HUB = spec_of(range(16), range(16, 16), range(16, 16))
SPLIT_HEAD = spec_of(range(5), range(5, 5), range(5, 16))


@pytest.mark.parametrize("spec", [ALL_AT_THE_HUB, SPLIT_HEAD], ids=["at the hub", "split"])
def test_a_spec_comes_back_from_json(spec: GroupSpec) -> None:
    assert spec_from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("rank", [0, 1])
def test_the_key_of_a_kept_slice_comes_back_from_json(rank: int) -> None:
    key = dataclasses.replace(SPLIT_HEAD, rank=rank, kernels="numpy").slice_key
    assert key.part.owns_head == (rank == 0)
    for each in (key, dataclasses.replace(key, adapter="ef" * 32)):
        assert read_kept(json.loads(json.dumps(each.to_json())), "b1") == each


@pytest.mark.parametrize("name", ["attention", "ffn", "head_shards", "owns_head"])
def test_the_key_of_a_kept_slice_says_what_the_slice_is(name: str) -> None:
    values = SPLIT_HEAD.slice_key.to_json()
    del values["part"][name]
    assert read_kept(values, "b1") is None


def test_a_spec_of_the_first_wire_version_has_streams() -> None:
    values = dataclasses.replace(SPLIT_HEAD, transport="zeromq").to_json()
    assert spec_from_json(values).transport == "zeromq"
    del values["transport"]
    assert spec_from_json(values).transport == "stream"


def test_logits_are_gathered_only_where_the_head_is_split() -> None:
    assert ALL_AT_THE_HUB.head_shards() == ()
    assert SPLIT_HEAD.head_shards() == (range(5), range(5, 5), range(5, 16))


def rank(number: int, name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values["ranks"][number].update({name: value})


@pytest.mark.parametrize(
    "spoil",
    [
        rank(1, "head_shards", [4, 5]),  # twice
        rank(1, "head_shards", [6, 5]),  # backwards
        rank(2, "head_shards", [6, 16]),  # one is of no board
        rank(0, "head_shards", [1, 5]),
        rank(2, "head_shards", [5, 1 << 40]),
        rank(2, "head_shards", [5, 16.0]),
        rank(2, "head_shards", [5]),
        rank(2, "head_shards", "all"),
        rank(2, "head_shards", None),
        lambda values: values["ranks"][1].pop("head_shards"),
        rank(1, "attention", [-1, 2]),
        rank(1, "ffn", [True, True]),
        rank(1, "key", KEYS[0]),
        rank(1, "name", "b\n1"),
        lambda values: values.update(rank=3),
        lambda values: values.update(rank=0),
        lambda values: values.update(ranks=values["ranks"][:1]),
        lambda values: values.update(wire="f8"),
        lambda values: values.update(transport="udp"),
        lambda values: values.update(transport=None),
    ],
)
def test_nonsense_is_refused(spoil: Callable[[dict[str, Any]], None]) -> None:
    values = copy.deepcopy(SPLIT_HEAD.to_json())
    spoil(values)
    with pytest.raises(ProtocolError):
        spec_from_json(values)


def test_a_head_of_no_shards_is_refused() -> None:
    empty = spec_of(range(0), range(0), range(0))
    with pytest.raises(ProtocolError, match="head shards"):
        spec_from_json(empty.to_json())


def test_shards_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    tiny = Pack.open(shelf_models.packed_tiny(tmp_path))
    assert (tiny.n_head_shards, tiny.n_attention_shards) == (16, 3)
    check_shards(ALL_AT_THE_HUB, tiny)
    check_shards(SPLIT_HEAD, tiny)
    for heads in ((range(5), range(5, 5), range(5, 15)), (range(5), range(5, 9), range(9, 17))):
        with pytest.raises(ProtocolError, match="does not have"):
            check_shards(spec_of(*heads), tiny)
    first, *others = SPLIT_HEAD.ranks
    wide = dataclasses.replace(first, part=dataclasses.replace(first.part, ffn=range(3)))
    with pytest.raises(ProtocolError, match="does not have"):
        check_shards(dataclasses.replace(SPLIT_HEAD, ranks=(wide, *others)), tiny)
