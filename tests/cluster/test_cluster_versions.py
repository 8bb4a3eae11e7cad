"""A cluster that is upgraded board by board: a board of the previous version beside new ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
_SEAT_1 = {"address": "", "daemon": "", "attention": [0, 1], "ffn": [0, 1]}
# As a hub of version 1 sends it.
SPEC_1 = {
    "session": "ab" * 8, "epoch": 7, "rank": 1,
    "seats": [
        {"key": "k" * 40, "name": "b1", **_SEAT_1, "vocabulary": [0, 4]},
        {"key": "l" * 40, "name": "b2", **_SEAT_1, "vocabulary": [4, 4]},
    ],
    "n_ctx": 64, "batch": 8, "kv_bits": 16, "allreduce": "star", "wire": "f64",
    "window_io": "auto", "kernels": "", "pack": {"id": "cd" * 32, "name": "tiny"},
}  # fmt: skip


def test_a_spec_of_version_1_is_read_and_written() -> None:
    kind, body = VERSION_1.to_new("session-start", {"id": 3, "spec": SPEC_1})
    spec = spec_from_json(body["spec"])
    assert (kind, body["id"]) == ("job-start", 3)
    assert (spec.id, spec.version, spec.transport) == ("ab" * 8, 1, "stream")
    assert [rank.part.head_shards for rank in spec.ranks] == [range(4), range(4, 4)]
    written = VERSION_1.to_old("job-start", {"job": "inference", "spec": spec.to_json()})
    added = {"version": 1, "transport": "stream"}  # which version 1 does not read
    assert written == ("session-start", {"job": "inference", "spec": {**SPEC_1, **added}})


# Bodies of version 2 by kind, and what they are for a board of version 1. The names of both are
# those of releases: they are written out here, and come from nowhere else.
REPORT_2 = {
    "does": "computing", "state": "disk", "holder": "b1", "head_shards": [0, 4], "queue_length": 2,
    "stalled_on": "disk",
}  # fmt: skip
REPORT_1 = {"does": "computing", "how": "disk", "for": "b1", "vocabulary": [0, 4]}
TOLD = [
    (
        "beat", {"sequence": 1, "report": REPORT_2},
        "beat", {"sequence": 1, "state": {**REPORT_1, "queue_length": 2, "waiting": "disk"}},
    ),
    (
        "job-queued", {"group": "ab", "place": 1, "holder": "b1"},
        "session-queued", {"session": "ab", "place": 1, "held_by": "b1"},
    ),
    (
        "job-listens", {"group": "ab", "port": 7},
        "session-listens", {"session": "ab", "port": 7},
    ),
    (
        "job-report", {"group": "ab", "stage": "loading", "state": "disk"},
        "session-report", {"session": "ab", "stage": "loading", "state": "disk"},
    ),
    (
        "job-ended", {"group": "ab", "message": "gone", "board": "b2", "key": "k"},
        "session-ended", {"session": "ab", "message": "gone", "board": "b2", "key": "k"},
    ),
    ("job-revoked", {"key": "k"}, "session-revoked", {"key": "k"}),
    ("job-release", {}, "session-close", {}),
    # A session's own number, which is no group's; version 1 reads nothing here.
    ("job-reserve", {"session": "cd"}, "session-take", {"session": "cd"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body", "old_kind", "old_body"), TOLD)
def test_a_message_to_a_board_of_version_1_has_its_names(
    kind: str, body: dict[str, Any], old_kind: str, old_body: dict[str, Any]
) -> None:
    assert VERSION_1.to_old(kind, body) == (old_kind, old_body)
    if kind != "beat":  # whose `waiting` version 1 reads in another sense than it writes it
        assert VERSION_1.to_new(old_kind, old_body) == (kind, body)


def test_a_heartbeat_of_a_board_of_version_1() -> None:
    body = {"sequence": 1, "state": {**REPORT_1, "waiting": 2}}
    report = {name: value for name, value in REPORT_2.items() if name != "stalled_on"}
    assert VERSION_1.to_new("beat", body) == ("beat", {"sequence": 1, "report": report})


def test_an_answer_about_the_mesh_to_a_board_of_version_1() -> None:
    stalled = {"stalled_on": "disk"}  # unknown there
    old = {"boards": [{"name": "b1", "report": {**REPORT_1, "waiting": 2, **stalled}}]}
    new = {"boards": [{"name": "b1", "report": REPORT_2}]}
    assert VERSION_1.to_old("reply", new, "mesh-state") == ("reply", old)
    assert VERSION_1.to_new("mesh-state", old)[1] == new


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
