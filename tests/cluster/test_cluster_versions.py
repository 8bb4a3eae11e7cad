"""A cluster that is upgraded board by board: a board of the previous version beside new ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_boards import ClusterOf, until
from shelf_models import packed_tiny
from version1_code import unpack_version1

from picoedge.cluster.spec import spec_from_json
from picoedge.jobs.spec import VERSION_1
from picoedge.mesh.identity.admission import Invites
from picoedge.mesh.identity.lifetime import Moment
from picoedge.mesh.identity.roster import RosterFile

HOW = ("-p", "The", "--raw", "-n", "6", "--temperature", "0", "--ignore-eos", "-t", "1")


def test_a_spec_of_version_1_names_neither_version_nor_transport() -> None:
    seat = {"address": "", "daemon": "", "attention": [0, 1], "ffn": [0, 1]}
    seats = [
        {**seat, "key": "k" * 40, "name": "b1", "vocabulary": [0, 4]},
        {**seat, "key": "l" * 40, "name": "b2", "vocabulary": [4, 4]},
    ]
    spec = spec_from_json(
        {
            "session": "ab" * 8, "epoch": 7, "pack": {"id": "cd" * 32, "name": "tiny"}, "rank": 1,
            "seats": seats, "n_ctx": 64, "batch": 8, "kv_bits": 16, "allreduce": "star",
            "wire": "f64", "window_io": "auto", "kernels": "",
        }
    )  # fmt: skip
    assert (spec.version, spec.transport) == (1, "stream")


def test_names_of_version_1() -> None:
    assert VERSION_1.to_old("job-reserve", {})[0] == "session-take"
    assert VERSION_1.to_new("session-ended", {})[0] == "job-ended"
    assert VERSION_1.to_new("beat", {"state": {"waiting": 2}})[1] == {"state": {"queue_length": 2}}


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[ClusterOf]:
    """Two boards: b1 is of today, b2 runs the code of version 1."""
    before = unpack_version1(tmp_path / "before")
    cluster = ClusterOf(tmp_path / "boards", 2)
    try:
        first, second = cluster.boards
        first.start("--memory", "1G")
        key = RosterFile(first.keys).roster.cluster.key
        invite = Invites(first.keys).issue(first.address, key, 3600, Moment.now())
        second.code = before
        second.start("--memory", "1G", "--join", invite, "--name", "b2")
        cluster.wait()
        where = [sys.executable, "-c", "import picoedge; print(picoedge.__file__)"]
        assert second.run(program=where).out.end().startswith(str(before))
        yield cluster
    finally:
        cluster.end()


@pytest.mark.parametrize("hub", [1, 2])
def test_a_group_over_both_says_what_one_board_says(
    mixed: ClusterOf, tmp_path: Path, hub: int
) -> None:
    pack = packed_tiny(tmp_path)
    mixed.shelve(pack, [0, 1])
    alone = mixed[1].run("generate", pack, *HOW)
    assert alone.wait() == 0, alone.err.text
    assert mixed[1].seen()["b2"]["condition"] == "alive"
    over = mixed[hub].run("generate", pack, *HOW, "--cluster", "-ts", "1,1")
    assert over.wait() == 0, over.err.text
    assert "2 boards" in over.err.text
    assert over.out.text == alone.out.text
    until(lambda: mixed[1].does() == "free", "b1 is free")
