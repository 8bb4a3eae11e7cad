"""A let-in board whose daemon or worker sends what makes no sense: answers go on without it."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
from adapters_material import prepared, random_adapter
from cluster_boards import ROOT, ClusterOf
from shelf_models import packed_tiny

from picoedge.cluster.load import load_over_boards
from picoedge.engine.open import load_model
from picoedge.engine.options import OpenOptions
from picoedge.jobs.boards import BoardDirectory
from picoedge.planner.cluster_plan import ClusterOptions
from picoedge.planner.topology import LinkFacts, Topology
from picoedge.store.pack.reader import Pack

OPTIONS = OpenOptions(threads=1, n_ctx=128)
TOKENS = [3, 141, 59]
# What runs in each Python process of the board, before anything else of picoedge.
LIES = {
    "a port that is none": """
from picoedge.daemon.board import BoardService
told = BoardService.worker_said
BoardService.worker_said = lambda board, reservation, line: told(
    board, reservation, {**line, "port": 0} if "port" in line else line)
""",
    "frames that are none": """
from picoedge.daemon.board import BoardService
def push(board, reservation, what, **body):
    board._node.rpc.server.send(reservation.sender, [b"nonsense", b"\\xff"], True)
BoardService._push = push
""",
    "a note that is no JSON": """
from picoedge.jobs import group_links
def send(links, rank, note):
    header = group_links.Header(group_links.Kind.CONTROL, links.epoch)
    links.send(rank, group_links.pack_prefix(header, links.version) + b"{")
group_links.send_note = send
""",
    "a note without a batch": """
from picoedge.jobs import group_links
told = group_links.send_note
group_links.send_note = lambda links, rank, note: told(links, rank, {})
""",
    "a batch of none": """
from picoedge.jobs import group_links
told = group_links.send_note
group_links.send_note = lambda links, rank, note: told(
    links, rank, {**note, "batch": 0} if "batch" in note else note)
""",
    "a part of an adapter that is not there": """
from picoedge.jobs import group_links
told = group_links.send_note
group_links.send_note = lambda links, rank, note: told(
    links, rank, {"adapter": -7} if "adapter" in note else note)
""",
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return Pack.open(packed_tiny(tmp_path_factory.mktemp("tiny")))


def slow_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of this process find the other boards worth having."""
    look = BoardDirectory.cluster

    def measured(directory: BoardDirectory) -> Topology:
        boards = [
            dataclasses.replace(one, compute_bytes_per_s=1e8 if number else 1e6, message_s=5e-5)
            for number, one in enumerate(look(directory).boards)
        ]
        return Topology(tuple(boards), link=LinkFacts(1e-4, 1e8))

    monkeypatch.setattr(BoardDirectory, "cluster", measured)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("lie", LIES)
def test_the_text_goes_on_without_a_board_that_sends_nonsense(
    lie: str, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lies").mkdir()
    (tmp_path / "lies" / "sitecustomize.py").write_text(LIES[lie])
    with ExitStack() as stack:
        boards = ClusterOf(tmp_path, 2)
        stack.callback(boards.end)
        boards[2].code = f"{tmp_path / 'lies'}:{ROOT}"
        boards.start()
        boards.shelve(pack.path)
        boards[1].lend_environ(monkeypatch)
        slow_hub(monkeypatch)
        options = dataclasses.replace(OPTIONS, cluster=ClusterOptions())
        if "adapter" in lie:
            options = dataclasses.replace(
                options, adapter=prepared(pack, random_adapter(pack.config))
            )
        alone = dataclasses.replace(options, cluster=None)
        with closing(load_model(pack, alone)) as one:
            want = one.forward(TOKENS, 0).copy()
        with closing(load_over_boards(pack, options)) as model:
            np.testing.assert_array_equal(model.forward(TOKENS, 0), want)
            losses = model.report()["losses"]
            assert {loss["board"] for loss in losses} == {"b2"}
            assert len(losses) <= 2
            assert model.boards == 1
