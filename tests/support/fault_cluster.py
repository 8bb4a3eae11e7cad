"""Fixtures, a plugin of pytest: three boards that a test may kill, stop and restart."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_answers import answer
from cluster_boards import ClusterOf, cluster_of


@pytest.fixture(scope="module")
def three_boards(
    smollm2_pack: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterOf]:
    with cluster_of(tmp_path_factory.mktemp("faults"), 3) as made:
        made.shelve(smollm2_pack)
        yield made


@pytest.fixture
def cluster(three_boards: ClusterOf) -> Iterator[ClusterOf]:
    """Three boards; what a test has stopped or killed of them is there for the next."""
    yield three_boards
    boards = three_boards.boards
    for board in boards:
        board.signal_all(signal.SIGCONT)
    for board in boards:
        if board.daemon is None or board.daemon.process.poll() is not None:
            board.start("--memory", "2G")
    three_boards.wait()
    for board in boards:
        board.await_free()


@pytest.fixture(scope="module")
def undisturbed(three_boards: ClusterOf, smollm2_pack: Path) -> str:
    """The answer of one board."""
    session = answer(three_boards[1], smollm2_pack, "-c", "512")
    assert session.wait() == 0
    return session.out.text
