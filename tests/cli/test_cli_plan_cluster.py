"""`picoedge plan` over boards: of a file, and of a mesh that runs."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import shelf_models
from adapters_material import random_adapter
from cli_runs import Run, forget_settings, run_here
from cluster_boards import cluster_of
from cluster_figures import board, cluster, load_of

from picoedge.cli.plan import NUMBERS, rows_by_count
from picoedge.planner.cluster_plan import ClusterOptions, plan_cluster
from picoedge.planner.topology import LinkFacts, Topology
from picoedge.store.adapters import write_adapter
from picoedge.store.pack.reader import Pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer."""
    return shelf_models.packed_tiny(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """One command line, with no settings but the test's own."""
    forget_settings(monkeypatch, tmp_path)
    return partial(run_here, capsys)


def write_boards(path: Path, count: int = 3, **more: Any) -> Path:
    """A file of boards a, b, … that are slow enough for two to be quicker than one."""
    boards = [dataclasses.asdict(board(name, 1e6)) for name in "abcdef"[:count]]
    link = {"latency_s": 1e-5, "bytes_per_s": 1e9}
    path.write_text(json.dumps({"link": link, "boards": boards, **more}))
    return path


# -- a file ----------------------------------------------------------------------------------------


def test_a_plan_with_an_adapter_names_it(run: Run, pack: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "mine", random_adapter(Pack.open(pack).config))
    words = ["plan", pack, "--boards", write_boards(tmp_path / "boards.json"), "--json"]
    code, out, err = run(*words, "--adapter", tmp_path / "mine")
    assert (code, err) == (0, "")
    assert json.loads(out)["adapter"]["name"] == "mine"
    assert "adapter" not in json.loads(run(*words)[1])


def test_a_table_for_each_number_of_boards_and_one_of_shares(
    run: Run, pack: Path, tmp_path: Path
) -> None:
    code, out, err = run("plan", pack, "--boards", write_boards(tmp_path / "boards.json"))
    assert (code, err) == (0, "")
    why, speeds, holds, *idle = out.split("\n\n")
    assert " a token" in why
    rows = speeds.splitlines()
    assert rows[0].split("  ")[0] == "boards"
    assert [row.split()[0] for row in rows[1:]] == ["1", "2", "3"]
    chosen = [row.split()[0] for row in rows[1:] if row.split()[1] == "*"]
    assert len(chosen) == 1
    taking = [row.split()[0] for row in holds.splitlines()[1:]]
    assert len(taking) == int(chosen[0])
    assert taking[0] == "a"
    left = sorted({"a", "b", "c"} - set(taking))
    assert idle == ([f"left out: {', '.join(left)}\n"] if left else [])


def test_json_has_all_of_it(run: Run, pack: Path, tmp_path: Path) -> None:
    file = write_boards(tmp_path / "boards.json")
    code, out, _ = run("plan", pack, "--boards", file, "--json", "-c", "512", "--hub", "b")
    report = json.loads(out)
    assert code == 0
    assert (report["model"], report["n_ctx"], report["hub"]) == ("tiny", 512, "b")
    assert len(report["predictions"]) == 3
    assert report["chosen"]["boards"][0]["board"] == "b"
    assert report["chosen"]["boards"][0]["head"] is True
    assert len(report["chosen"]["boards"]) + len(report["idle"]) == 3


def test_shares_and_sums_as_asked(run: Run, pack: Path, tmp_path: Path) -> None:
    file = write_boards(tmp_path / "boards.json")
    words = ("plan", pack, "--boards", file, "--json", "-ts", "1,1,1", "--allreduce", "star")
    chosen = json.loads(run(*words)[1])["chosen"]
    assert len(chosen["boards"]) >= 2
    assert chosen["allreduce"] == "star"


def test_a_head_that_is_dealt_has_its_column(run: Run, pack: Path, tmp_path: Path) -> None:
    file = write_boards(tmp_path / "boards.json")
    words = ("plan", pack, "--boards", file, "-ts", "1,1,2")
    kept, dealt = run(*words)[1], run(*words, "--split-head")[1]
    assert "shards 0-15" in kept
    for run_of_shards in ("shards 0-3", "shards 4-7", "shards 8-15"):
        assert run_of_shards in dealt
    report = json.loads(run(*words, "--split-head", "--json")[1])["chosen"]["boards"]
    assert [share["vocabulary"] for share in report] == [[0, 4], [4, 8], [8, 16]]


def test_memory_is_the_hubs(run: Run, pack: Path, tmp_path: Path) -> None:
    words = ("plan", pack, "--boards", write_boards(tmp_path / "boards.json"), "--json")
    budgets = [
        share["budget_bytes"]
        for share in json.loads(run(*words, "--memory", "70M", "-ts", "1,1")[1])["chosen"]["boards"]
    ]
    assert budgets == [70 << 20, 2000 << 20]


def test_boards_that_cannot_hold_it_are_told_with_figures(
    run: Run, pack: Path, tmp_path: Path
) -> None:
    boards = [dataclasses.asdict(board(name, memory=60.5)) for name in "ab"]
    link = {"latency_s": 1e-5, "bytes_per_s": 1e9}
    (tmp_path / "boards.json").write_text(json.dumps({"link": link, "boards": boards}))
    code, out, err = run("plan", pack, "--boards", tmp_path / "boards.json")
    assert (code, out) == (1, "")
    assert err.startswith("error: the boards cannot hold the model")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cluster", "--boards", "x.json"], "--cluster and --boards are both given"),
        (["--hub", "a"], "--hub names a board of a file"),
        (["-ts", "1,1"], "-ts shares a model among boards"),
        (["--split-head"], "--split-head is over boards"),
        (["--boards", "boards.json", "--hub", "z"], "there is no board 'z' to be the hub"),
        (["--boards", "boards.json", "-ts", "1,x"], "1,x"),
        (["--boards", "bad.json"], "bad.json is not JSON"),
        (["--boards", "boards.json", "-ts", "1,1,1,1"], "the split is over 4 boards"),
    ],
)
def test_a_wrong_command_line_is_a_line_and_exit_code_2(
    run: Run, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str],
    said: str,
) -> None:  # fmt: skip
    write_boards(tmp_path / "boards.json")
    (tmp_path / "bad.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    code, out, err = run("plan", pack, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_file_that_is_not_there_and_a_hub_whose_links_are_not_known(
    run: Run, pack: Path, tmp_path: Path
) -> None:
    code, _, err = run("plan", pack, "--boards", tmp_path / "none.json")
    assert (code, err) == (1, f"error: {tmp_path / 'none.json'}: no such file or directory\n")
    boards = [dataclasses.asdict(board(name)) for name in "abc"]
    links = [{"between": ["a", b], "latency_s": 1e-4, "bytes_per_s": 1e8} for b in "bc"]
    (tmp_path / "star.json").write_text(json.dumps({"boards": boards, "links": links}))
    assert run("plan", pack, "--boards", tmp_path / "star.json")[0] == 0
    code, _, err = run("plan", pack, "--boards", tmp_path / "star.json", "--hub", "b")
    assert code == 2
    assert "nothing is known of the link between b and c" in err


# -- the table -------------------------------------------------------------------------------------


def rows_of(boards: Topology, wishes: ClusterOptions | None = None) -> list[tuple[str, ...]]:
    rows = rows_by_count(plan_cluster(load_of(), boards, wishes))
    assert all(len(row) == len(NUMBERS) for row in rows)
    return rows


def test_rows_of_impossible_plans_and_of_boards_without_a_share() -> None:
    small = [board(name, memory=300) for name in "abc"]
    rows = rows_of(cluster(*small, link=LinkFacts(1e-5, 1e9)))
    assert [row[0].split()[0] for row in rows] == ["1", "2", "3"]
    assert sum(row[0].endswith("*") for row in rows) == 1
    none = [board("a", memory=81), board("b", memory=2000)]
    assert rows_of(cluster(*none))[0][1] == "cannot hold the model"


def test_shares_that_were_asked_for_have_a_row_of_their_own() -> None:
    rows = rows_of(cluster(board("a"), board("b")), ClusterOptions(split=(7, 1)))
    assert [row[0] for row in rows] == ["1", "2", "2 *"]


# -- the mesh --------------------------------------------------------------------------------------


def test_the_mesh_as_it_is_now(
    run: Run, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster_of(tmp_path / "cluster", 2) as boards:
        monkeypatch.setenv("PICOEDGE_CLUSTER", str(boards[1].keys))
        code, out, err = run("plan", pack, "--cluster", "--json")
        assert (code, err) == (0, "")
        report = json.loads(out)
        assert report["hub"] == "b1"
        assert len(report["predictions"]) == 2
        assert " a token" in run("plan", pack, "--cluster")[1].splitlines()[0]
    code, _, err = run("plan", pack, "--cluster")
    assert code == 1
    assert "picoedge run" in err
