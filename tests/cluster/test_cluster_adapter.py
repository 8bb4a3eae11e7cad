"""A model with an adapter over boards: the bits of one board, and slices kept for that adapter."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters_material import prepared, random_adapter
from cluster_boards import ClusterOf
from group_links import ROWS, TRANSPORTS, opened
from kept_slices import answered, keeping_cluster, kept_on
from mesh_sums import EPOCH, boards, name_of
from shelf_models import packed_tiny

from picoedge.cluster.adapter_transfer import TAG, receive_adapter, refuse_adapter, send_adapter
from picoedge.cluster.load import load_over_boards
from picoedge.cluster.spec import GroupSpec, RankSpec, spec_from_json
from picoedge.engine.open import load_model
from picoedge.engine.options import OpenOptions
from picoedge.errors import (
    BoardLostError,
    BoardRefusedError,
    MemoryBudgetError,
    ProtocolError,
)
from picoedge.jobs.group_links import receive_note, send_note
from picoedge.mesh.group.links import Links
from picoedge.mesh.group.peer_link import TransportChoice
from picoedge.mesh.transport.frames import HUB, Dtype, Header, Kind, pack_prefix
from picoedge.model.adapter import AdapterSlice
from picoedge.planner.cluster_plan import ClusterOptions
from picoedge.store.adapters import write_adapter
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Slice

OPTIONS = OpenOptions(threads=1, n_ctx=128)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return Pack.open(packed_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def cluster(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOf]:
    with keeping_cluster(tmp_path_factory.mktemp("adapted"), pack.path) as made:
        yield made


def test_boards_do_not_change_a_bit(
    pack: Pack, cluster: ClusterOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster[1].lend_environ(monkeypatch)
    options = dataclasses.replace(OPTIONS, adapter=prepared(pack, random_adapter(pack.config)))
    with closing(load_model(pack, OPTIONS)) as plain, closing(load_model(pack, options)) as one:
        unlike, want = plain.forward([3, 141, 59], 0).copy(), one.forward([3, 141, 59], 0).copy()
    over = dataclasses.replace(options, cluster=ClusterOptions(split=(1, 1)))
    with closing(load_over_boards(pack, over)) as model:
        assert model.boards == 2
        np.testing.assert_array_equal(model.forward([3, 141, 59], 0), want)
    assert np.abs(want - unlike).max() > 0.01 * np.abs(unlike).max()


def test_a_kept_slice_is_for_its_adapter_alone(
    pack: Pack, cluster: ClusterOf, tmp_path: Path
) -> None:
    for name, seed in (("a", 3), ("b", 4)):
        adapter = random_adapter(pack.config, seed=seed, strength=40.0)
        write_adapter(tmp_path / name, adapter)
    plain = answered(cluster[1])["tokens"]
    first = answered(cluster[1], "--adapter", str(tmp_path / "a"))["tokens"]
    pid = kept_on(cluster[2])
    assert answered(cluster[1], "--adapter", str(tmp_path / "a"))["tokens"] == first
    assert kept_on(cluster[2]) == pid
    other = answered(cluster[1], "--adapter", str(tmp_path / "b"))["tokens"]
    assert answered(cluster[1])["tokens"] == plain
    assert len({tuple(tokens) for tokens in (plain, first, other)}) == 3


# -- what is sent ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(pack: Pack) -> AdapterSlice:
    return prepared(pack, random_adapter(pack.config))


def spec_with(adapter: AdapterSlice) -> GroupSpec:
    parts = (Slice(range(1), range(2), range(16)),
             Slice(range(1, 3), range(2, 2), range(16, 16), owns_head=False))  # fmt: skip
    ranks = tuple(RankSpec(key * 40, f"b{i}", part) for i, (key, part) in
                  enumerate(zip("kl", parts, strict=True)))  # fmt: skip
    return GroupSpec("ab" * 8, 7, "cd" * 32, "tiny", 1, ranks, 64, 8, adapter=adapter.shape)


def test_a_spec_names_the_adapter(adapter: AdapterSlice) -> None:
    spec = spec_with(adapter)
    assert spec_from_json(json.loads(json.dumps(spec.to_json()))) == spec
    without = dataclasses.replace(spec, adapter=None)
    assert "adapter" not in without.to_json()
    assert spec.slice_key != without.slice_key


@pytest.mark.parametrize(
    "spoil",
    [
        lambda shape: shape.update(id="x"),
        lambda shape: shape.pop("ranks"),
        lambda shape: shape["ranks"].update(q=[1 << 20]),
        lambda shape: shape["ranks"].update(q=[-1]),
        lambda shape: shape["ranks"].update(q=[True]),
        lambda shape: shape["ranks"].update(q=[]),
        lambda shape: shape["ranks"].update(head=[1]),
        lambda shape: shape["ranks"].update(q=[1] * 5000),
    ],
)
def test_shapes_that_are_none_are_refused(
    adapter: AdapterSlice, spoil: Callable[[dict[str, Any]], None]
) -> None:
    values = json.loads(json.dumps(spec_with(adapter).to_json()))
    spoil(values["adapter"])
    with pytest.raises(ProtocolError):
        spec_from_json(values)


def both(
    transport: TransportChoice, hub: Callable[[Links], Any], worker: Callable[[Links], Any]
) -> tuple[Any, Any]:
    """What a hub and a worker, linked, give or raise."""
    with boards(2, "star", ROWS, transport=transport) as group:
        opened(group)
        sides = hub, worker
        gave = group.each(lambda rank: sides[rank](group.links[rank]))
        return gave[0], gave[1]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_worker_gets_its_part(
    pack: Pack, adapter: AdapterSlice, transport: TransportChoice
) -> None:
    part = spec_with(adapter).part
    sent, got = both(
        transport,
        lambda links: send_adapter(links, 1, adapter.of(part)),
        lambda links: receive_adapter(links, adapter.shape, part, pack, 1 << 30),
    )
    assert sent is None
    np.testing.assert_array_equal(got.values(), adapter.of(part).values())


def test_a_kept_slice_is_sent_nothing(pack: Pack, adapter: AdapterSlice) -> None:
    part = spec_with(adapter).part

    def hub(links: Links) -> int:
        before = links.bytes_sent
        send_adapter(links, 1, adapter.of(part))
        return links.bytes_sent - before

    sent, _ = both("stream", hub, lambda links: refuse_adapter(links, adapter.shape, part, pack))
    assert sent == 0


def test_a_worker_that_knows_no_adapters_is_left_out(adapter: AdapterSlice) -> None:
    part = spec_with(adapter).part
    refused, _ = both(
        "stream",
        lambda links: send_adapter(links, 1, adapter.of(part)),
        lambda links: send_note(links, HUB, {"ready": True, "batch": 8}),
    )
    assert isinstance(refused, BoardRefusedError)
    assert "knows no adapters" in refused.message


@pytest.mark.parametrize("spoil", ["NaN", "short", "elsewhere"])
def test_a_hub_that_sends_something_else_is_lost(
    pack: Pack, adapter: AdapterSlice, spoil: str
) -> None:
    part = spec_with(adapter).part
    values = adapter.of(part).values()
    values[7] = np.nan if spoil == "NaN" else values[7]
    piece = values[: len(values) - (spoil == "short")]
    header = Header(
        Kind.DATA, EPOCH, 0, Dtype.F32, (1, len(values)), int(spoil == "elsewhere"), TAG
    )

    def hub(links: Links) -> None:
        receive_note(links, 1, 5.0)
        links.send(1, pack_prefix(header) + piece.tobytes())

    _, raised = both(
        "stream", hub, lambda links: receive_adapter(links, adapter.shape, part, pack, 1 << 30)
    )
    assert isinstance(raised, BoardLostError)


@pytest.mark.parametrize("first", [1 << 40, -1, "0", 8])
def test_a_worker_that_asks_for_what_is_not_due_is_blamed(
    adapter: AdapterSlice, first: object
) -> None:
    part = spec_with(adapter).part
    raised, _ = both(
        "stream",
        lambda links: send_adapter(links, 1, adapter.of(part)),
        lambda links: send_note(links, HUB, {"adapter": first}),
    )
    assert isinstance(raised, BoardLostError)
    assert isinstance(raised, ProtocolError)
    assert (raised.board, len(raised.key)) == (name_of(1), 40)


def test_a_worker_that_asks_again_and_again_is_blamed(adapter: AdapterSlice) -> None:
    part = spec_with(adapter).part

    def worker(links: Links) -> None:
        for _ in range(3):
            send_note(links, HUB, {"adapter": 0})

    raised, _ = both("stream", lambda links: send_adapter(links, 1, adapter.of(part)), worker)
    assert isinstance(raised, BoardLostError)
    assert "asks for values from 0 on" in raised.message


def test_an_adapter_too_large_for_a_worker_is_refused_before_it_is_sent(
    pack: Pack, adapter: AdapterSlice
) -> None:
    links: Any = None  # nothing is said over it
    with pytest.raises(MemoryBudgetError, match="the adapter takes"):
        receive_adapter(links, adapter.shape, spec_with(adapter).part, pack, 1 << 10)
