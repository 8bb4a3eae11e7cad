"""A group's forward passes: logits gathered at the hub, and inputs that are checked."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from mesh_sums import EPOCH, boards, forward_pass, part

from picoedge.cluster.forward_pass import ForwardPass, Stages, Tag
from picoedge.kernels.arrays import F32, F64
from picoedge.mesh.group.channel import F32_PIECE_VALUES, ArrayLimits
from picoedge.mesh.group.peer_link import BoardFaultError
from picoedge.mesh.transport.frames import HUB, Dtype, Header, Kind, pack_prefix

KINDS = ("star", "exchange")
SMALL = ArrayLimits(rows=4, width=64)


def x_of(forward: int, rows: ArrayLimits, n: int) -> F32:
    return np.random.default_rng(forward).standard_normal((n, rows.width)).astype(np.float32)


def read(sums: F64) -> bytes:
    """A sum as the operation that reads it does."""
    return sums.astype(np.float32).tobytes()


SHARED = Stages((0, 1), (0, 1), 1, (range(3), range(3, 3), range(3, 10)))
WIDE = F32_PIECE_VALUES + 5  # of the last rank: in two pieces
WIDELY = Stages((0, 1), (0, 1), 1, (range(2), range(2, 9), range(9, 9 + WIDE)))


def logits_of(forward: int, n: int, columns: int) -> F32:
    seed = np.random.default_rng((99, forward))
    return seed.standard_normal((n, columns)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stages", [SHARED, WIDELY], ids=["few", "many"])
@pytest.mark.parametrize("n", [1, 3])
def test_logits_are_put_together_at_the_hub(kind: str, stages: Stages, n: int) -> None:
    total = stages.columns[-1].stop
    rows = ArrayLimits(rows=4, width=64, gathered=(4, total))
    asked = [0, 1, n, 1]

    def gather(board: ForwardPass, index: int, rank: int) -> None:
        """As a forward pass ends, of the last row alone or of all."""
        values, own = logits_of(index, n, total), stages.columns[rank]
        mine = values[:, own.start : own.stop]
        if rank == HUB:
            mine = np.zeros((n, total), np.float32)
            mine[:, own.start : own.stop] = values[:, own.start : own.stop]
        mine = np.ascontiguousarray(mine[n - asked[index] :])
        board.gather(mine)
        if rank == HUB:
            np.testing.assert_array_equal(mine, values[n - asked[index] :])

    def take(board: ForwardPass, rank: int) -> None:
        for index, wanted in enumerate(asked):
            if rank == HUB:
                board.input(x_of(index, rows, n), index, wanted)
            else:
                given = board.next_input()
                assert given is not None
                assert given[1:] == (index, wanted)
            for stage in range(stages.count):
                sums = np.full((n, rows.width), np.nan)
                if rank in stages.contributors(stage):
                    sums = part(rank, index, stage, n, rows.width)
                board.begin(sums)()
                if rank != 1 or stage < stages.count - 1:  # a rank with some of the head goes on
                    ranks = stages.contributors(stage)
                    parts = [part(r, index, stage, n, rows.width) for r in ranks]
                    assert read(sums) == read(functools.reduce(np.add, parts))
            if wanted:
                gather(board, index, rank)
        assert rank == HUB or board.next_input() is None or pytest.fail("it goes on")
        board.channel.close()

    with boards(3, kind, rows) as group:

        def outcome(rank: int) -> None:
            group.links[rank].open(5)
            take(forward_pass(group.links[rank], kind, 3, stages, rows), rank)

        assert group.each(outcome) == [None] * 3


def test_where_the_hub_has_the_head_nothing_of_it_travels() -> None:
    stages = Stages((0, 1), (0, 1), 1)
    with boards(2, "star", SMALL) as group:

        def outcome(rank: int) -> tuple[int, Any]:
            group.links[rank].open(5)
            board = forward_pass(group.links[rank], "star", 2, stages, SMALL)
            wanted = None
            if rank == HUB:
                board.input(x_of(0, SMALL, 2), 0, 1)
            elif given := board.next_input():
                wanted = given[2]
            for stage in range(stages.count):
                board.begin(part(rank, 0, stage, 2, SMALL.width))()
            before = board.channel.usage().bytes_sent
            board.gather(np.zeros((1, 7), np.float32))
            return board.channel.usage().bytes_sent - before, wanted

        assert group.each(outcome) == [(0, None), (0, 0)]


@pytest.mark.parametrize("values", [0, 6, 8])
def test_other_logits_than_are_due_cost_the_connection(values: int) -> None:
    stages = Stages((0, 1), (0, 1), 1, (range(3), range(3, 10)))
    rows = ArrayLimits(rows=1, width=64, gathered=(8, 10))
    with boards(2, "star", rows) as group:

        def outcome(rank: int) -> Any:
            group.links[rank].open(5)
            board = forward_pass(group.links[rank], "star", 2, stages, rows)
            if rank == HUB:
                board.input(x_of(0, rows, 1), 0, 1)
            else:
                board.next_input()
            for stage in range(stages.count):
                board.begin(part(rank, 0, stage, 1, 64))()
            if rank == HUB:
                board.gather(np.zeros((1, 10), np.float32))
            else:
                header = Header(
                    Kind.DATA, EPOCH, 1 + stages.count, Dtype.F32, (1, 10), tag=Tag.LOGITS
                )
                body = np.zeros(values, np.float32).tobytes()
                group.links[1].send(HUB, pack_prefix(header) + body)

        hub, _ = group.each(outcome)
    assert isinstance(hub, BoardFaultError)
    assert f"sent {4 * values} bytes of 7 logits" in str(hub)


def test_logits_asked_for_where_the_head_is_not_shared_are_a_fault() -> None:
    stages = Stages((0, 1), (0, 1), 1)
    with boards(2, "star", SMALL) as group:

        def outcome(rank: int) -> Any:
            group.links[rank].open(5)
            if rank:
                return forward_pass(group.links[rank], "star", 2, stages, SMALL).next_input()
            header = Header(Kind.DATA, EPOCH, 0, Dtype.F32, (1, 64), tag=Tag.INPUT_LAST)
            return group.links[HUB].send(1, pack_prefix(header) + bytes(256))

        _, worker = group.each(outcome)
    assert isinstance(worker, BoardFaultError)
    assert "INPUT_LAST" in str(worker)
