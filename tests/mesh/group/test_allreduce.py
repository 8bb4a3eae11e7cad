"""Sums over boards equal the ranks' parts added in their order, to the bit, on every board."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pytest
from mesh_sums import boards, forward_pass, part

from picoedge.cluster.forward_pass import ForwardPass, Stages
from picoedge.kernels.arrays import F64
from picoedge.mesh.group.allreduce import reduce
from picoedge.mesh.group.channel import ArrayLimits, Channel, message_pieces
from picoedge.mesh.group.codecs import codecs_for
from picoedge.mesh.transport.frames import HUB, VERSION

LAYERS, FORWARDS = 2, 3
KINDS = ("star", "exchange")
SMALL = ArrayLimits(rows=4, width=64)
CHUNKED = ArrayLimits(rows=5, width=1 << 14)  # 2.5 pieces of values, 2 of input


def x_of(forward: int, rows: ArrayLimits, n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(forward).standard_normal((n, rows.width)).astype(np.float32)


def take_part(
    board: ForwardPass,
    rank: int,
    stages: Stages,
    rows: ArrayLimits,
    n: int,
    lanes: int = 1,
    *,
    in_units: bool = False,
) -> list[F64]:
    """Follow the session to its end; gives all sums this rank goes on with.

    In lanes, each runs ahead by one stage: its sums begin before the other's have been finished.
    A board that has its layers in several units finishes all before it begins the next.
    """
    found = []
    runs = [slice(n * i // lanes, n * (i + 1) // lanes) for i in range(lanes)]

    def forward(index: int) -> None:
        under_way: list[Callable[[], None]] = []
        for stage in range(stages.count):
            sums = np.full((n, rows.width), np.nan)  # of a board that adds nothing: never used
            if rank in stages.contributors(stage):
                sums = part(rank, index, stage, n, rows.width)
            while in_units and under_way:
                under_way.pop(0)()
            for run in runs:
                if len(under_way) == lanes:
                    under_way.pop(0)()
                under_way.append(board.begin(sums[run]))
            if rank == HUB or stage < stages.count - 1:
                found.append(sums)
        for finish in under_way:
            finish()

    if rank == HUB:
        for index in range(FORWARDS):
            board.input(x_of(index, rows, n), index * n)
            forward(index)
    else:
        for index in range(FORWARDS):
            x, position, wanted = board.next_input() or pytest.fail("the session ended early")
            assert (position, wanted) == (index * n, 0)
            np.testing.assert_array_equal(x, x_of(index, rows, n))
            forward(index)
        assert board.next_input() is None
    board.channel.close()
    return found


def run(
    kind: str,
    stages: Stages,
    rows: ArrayLimits,
    count: int,
    n: int,
    wire: str,
    lanes: int = 1,
    *,
    in_units: Collection[int] = (),
    version: int = VERSION,
) -> list[list[F64]]:
    """The sums each rank goes on with."""
    with boards(count, kind, rows, version=version) as group:

        def outcome(rank: int) -> list[F64]:
            group.links[rank].open(5)
            board = forward_pass(group.links[rank], kind, count, stages, rows, wire)
            return take_part(board, rank, stages, rows, n, lanes, in_units=rank in in_units)

        found = group.each(outcome)
    for result in found:
        if isinstance(result, Exception):
            raise result
    return found


def expected(stages: Stages, rows: ArrayLimits, n: int) -> list[F64]:
    def total(ranks: Sequence[int], forward: int, stage: int) -> F64:
        parts = [part(rank, forward, stage, n, rows.width) for rank in ranks]
        return functools.reduce(np.add, parts)

    return [
        total(stages.contributors(stage), forward, stage)
        for forward in range(FORWARDS)
        for stage in range(stages.count)
    ]


@np.errstate(over="ignore")
def read(sums: F64) -> bytes:
    """A sum as the operation that reads it does."""
    return sums.astype(np.float32).tobytes()


def check(found: list[list[F64]], stages: Stages, wanted: list[F64]) -> None:
    """All ranks have these sums, but the workers not the last of a forward pass."""
    for rank, sums in enumerate(found):
        mine = [s for i, s in enumerate(wanted) if rank == HUB or (i + 1) % stages.count]
        assert len(sums) == len(mine)
        for got, want in zip(sums, mine, strict=True):
            assert read(got) == read(want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_all_boards_have_the_rank_ordered_sum(kind: str, count: int) -> None:
    everyone = tuple(range(count))
    stages = Stages(everyone, everyone, LAYERS)
    found = run(kind, stages, SMALL, count, 1, "f64")
    check(found, stages, expected(stages, SMALL, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("attention", "ffn"),
    [((0,), (0, 1, 2)), ((1,), (0, 2)), ((1, 2), (2,)), ((0, 2), (1,)), ((2,), (1,)), ((0,), (0,))],
)
def test_boards_may_add_to_some_sums_only(
    kind: str, attention: tuple[int, ...], ffn: tuple[int, ...]
) -> None:
    stages = Stages(attention, ffn, LAYERS)
    found = run(kind, stages, SMALL, 3, 2, "f64")
    check(found, stages, expected(stages, SMALL, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("attention", "ffn"),
    [
        ((0, 1, 2), (0, 2)),
        ((1,), (0, 1, 2)),
        ((1, 2), (2,)),
        ((0,), (1, 2)),
        ((0, 1, 2, 3, 4),) * 2,
    ],
)
def test_long_sums_go_in_pieces(
    kind: str, attention: tuple[int, ...], ffn: tuple[int, ...]
) -> None:
    assert len(CHUNKED.row_pieces(CHUNKED.rows)) == 2
    assert len(message_pieces(slice(0, CHUNKED.rows * CHUNKED.width))) == 3
    stages, count = Stages(attention, ffn, LAYERS), max(3, len(attention))
    found = run(kind, stages, CHUNKED, count, CHUNKED.rows, "f64")
    check(found, stages, expected(stages, CHUNKED, CHUNKED.rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [SMALL, CHUNKED], ids=["short", "long"])
@pytest.mark.parametrize(
    ("attention", "ffn"),
    [
        ((0, 1), (0, 1)),
        ((0, 1, 2), (0, 2)),
        ((1,), (0, 1, 2)),
        ((1, 2), (2,)),
        ((0,), (1, 2)),
        ((2,), (2,)),
        ((0, 1, 2, 3, 4),) * 2,
    ],
)
def test_sums_of_two_lanes_are_under_way_at_once(
    kind: str, rows: ArrayLimits, attention: tuple[int, ...], ffn: tuple[int, ...]
) -> None:
    stages, count = Stages(attention, ffn, LAYERS), 1 + max(1, *attention, *ffn)
    found = run(kind, stages, rows, count, rows.rows, "f64", lanes=2)
    check(found, stages, expected(stages, rows, rows.rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [SMALL, CHUNKED], ids=["short", "long"])
@pytest.mark.parametrize("in_units", [(0,), (1,), (2,), (0, 1), (1, 2)])
@pytest.mark.parametrize("ffn", [(0, 1, 2), (0, 2), (1,)])
def test_boards_whose_layers_come_in_units_go_with_others(
    kind: str, rows: ArrayLimits, in_units: tuple[int, ...], ffn: tuple[int, ...]
) -> None:
    stages = Stages((0, 1, 2), ffn, LAYERS)
    found = run(kind, stages, rows, 3, rows.rows, "f64", lanes=2, in_units=in_units)
    check(found, stages, expected(stages, rows, rows.rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wire", ["f32", "f16", "q8"])
def test_long_rounded_sums_are_the_same_on_every_board(kind: str, wire: str) -> None:
    stages = Stages((0, 1, 2), (1, 2), LAYERS)
    hub, *workers = run(kind, stages, CHUNKED, 3, CHUNKED.rows, wire)
    kept = [s.tobytes() for i, s in enumerate(hub) if (i + 1) % stages.count]
    for sums in workers:
        assert [s.tobytes() for s in sums] == kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wire", ["f32", "f16", "q8"])
@pytest.mark.parametrize("attention", [(0, 1, 2), (1,), (0,)])
def test_rounded_sums_are_the_same_on_every_board(
    kind: str, wire: str, attention: tuple[int, ...]
) -> None:
    stages = Stages(attention, (0, 1), LAYERS)
    found = run(kind, stages, SMALL, 3, 2, wire)
    hub = [s for i, s in enumerate(found[HUB]) if (i + 1) % stages.count]
    for sums in found[1:]:
        assert [s.tobytes() for s in sums] == [s.tobytes() for s in hub]


@pytest.mark.parametrize(("wire", "off"), [("f64", 0), ("f32", 1e-7), ("f16", 1e-3), ("q8", 5e-3)])
def test_a_codec_loses_little(wire: str, off: float) -> None:
    rows = np.random.default_rng(1).standard_normal(3 * 64)
    codec = codecs_for(wire, 64).part
    room = memoryview(bytearray(8 * 3 * 64))
    room = room[: codec.encode(rows, room)]
    back = codec.decode(room, np.empty(192))
    assert np.abs(back - rows).max() <= off * np.abs(rows).max()
    codec.encode(back, room)
    np.testing.assert_allclose(codec.decode(room, np.empty(192)), back, rtol=1e-6)


@pytest.mark.parametrize("wire", ["f32", "f16", "q8"])
def test_a_codec_survives_numbers_it_cannot_hold(wire: str) -> None:
    rows = np.full(64, 1e300)
    rows[:4] = np.inf, -np.inf, np.nan, 1e-300
    codec = codecs_for(wire, 64).part
    room = memoryview(bytearray(8 * 64))
    room = room[: codec.encode(rows, room)]
    assert codec.decode(room, np.empty(64)).shape == (64,)


def test_waiting_is_counted() -> None:
    stages = Stages((0, 1), (0, 1), 1)
    with boards(2, "star", SMALL) as group:

        def outcome(rank: int) -> Any:
            group.links[rank].open(5)
            board = forward_pass(group.links[rank], "star", 2, stages, SMALL)
            take_part(board, rank, stages, SMALL, 1)
            return board.channel.usage()

        hub, worker = group.each(outcome)
    assert hub.sums == worker.sums == FORWARDS * stages.count
    assert hub.late_s.keys() == {1}
    assert 0 < hub.late_s[1] <= hub.wait_s * 1.001
    assert hub.bytes_sent == worker.bytes_received
    assert hub.bytes_received == worker.bytes_sent > FORWARDS * 2 * 64 * 6


@pytest.mark.parametrize("owners", [(HUB,), (1,), (0, 1, 2), (0, 2), None], ids=str)
@pytest.mark.parametrize("receivers", [(0, 1, 2), (1,), (0, 2)], ids=str)
@pytest.mark.parametrize("contributors", [(0, 1, 2), (0, 2), (1,)], ids=str)
def test_any_ranks_may_own_what_others_add_and_receive(
    owners: tuple[int, ...] | None, receivers: tuple[int, ...], contributors: tuple[int, ...]
) -> None:
    parts = [part(rank, 0, 0, 3, SMALL.width) for rank in range(3)]
    total = functools.reduce(np.add, [parts[rank] for rank in contributors])
    with boards(3, "exchange", SMALL) as group:

        def outcome(rank: int) -> F64:
            group.links[rank].open(5)
            channel = Channel(group.links[rank], range(3), SMALL, codecs_for("f64", SMALL.width))
            finishes = []
            for _ in range(2):
                values = parts[rank].copy()
                finishes.append(reduce(channel, values, contributors, receivers, owners))
            for finish in finishes:
                finish()
            return values

        found = group.each(outcome)
    for rank in receivers:
        assert read(found[rank]) == read(total)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wire", ["f64", "q8"])
def test_a_group_of_version_1_has_the_same_sums(kind: str, wire: str) -> None:
    stages = Stages((0, 1, 2), (1, 2), LAYERS)
    new, old = (run(kind, stages, SMALL, 3, 2, wire, version=version) for version in (VERSION, 1))
    for rank in range(3):
        assert [s.tobytes() for s in new[rank]] == [s.tobytes() for s in old[rank]]
