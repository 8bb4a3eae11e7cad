"""Boards that die, hang or leave in the middle of an answer: the text goes on as it would have."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_boards import BoardOf, ClusterOf, Running, cluster_of, last_json, until

PROMPT = "Once upon a time there was a board that"
COUNT = 50
SOME_WORDS = r"\w+ \w+ \w+ \w+"
pytest_plugins = ["fault_fixtures"]

HOW = ["--temperature", "0", "--raw", "--ignore-eos", "-t", "1"]


def answer(board: BoardOf, pack: Path, *more: str) -> Running:
    """A greedy answer of COUNT tokens."""
    return board.run("generate", pack, "-p", PROMPT, "-n", str(COUNT), *HOW, *more)


@pytest.fixture(scope="module")
def cluster(smollm2_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOf]:
    with cluster_of(tmp_path_factory.mktemp("faults"), 3) as made:
        made.shelve(smollm2_pack)
        yield made


@pytest.fixture(scope="module")
def undisturbed(cluster: ClusterOf, smollm2_pack: Path) -> str:
    """The answer of one board."""
    session = answer(cluster[1], smollm2_pack, "-c", "512")
    assert session.wait() == 0
    return session.out.text


@pytest.fixture(autouse=True)
def whole_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """Boards that a test has stopped or killed are there for the next."""
    yield
    if "cluster" not in request.fixturenames:
        return
    cluster: ClusterOf = request.getfixturevalue("cluster")
    for board in cluster.boards:
        board.signal_all(signal.SIGCONT)
    for board in cluster.boards:
        if board.daemon is None or board.daemon.process.poll() is not None:
            board.start("--memory", "2G")
    cluster.wait()
    for board in cluster.boards:
        board.await_free()


def begin(cluster: ClusterOf, pack: Path, *more: str) -> Running:
    """An answer over all boards, some words of which are there."""
    boards = str(len(cluster.boards))
    session = answer(cluster[1], pack, "--cluster", "--boards", boards, *(more or ("-c", "512")))
    session.out.wait(SOME_WORDS)
    return session


Harm = Callable[[BoardOf], None]


def kill_worker(board: BoardOf) -> None:
    board.worker().kill()


def stop_worker(board: BoardOf) -> None:
    board.worker().suspend()


def kill_board(board: BoardOf) -> None:
    board.signal_all(signal.SIGKILL)


def stop_board(board: BoardOf) -> None:
    board.signal_all(signal.SIGSTOP)


def restart_daemon(board: BoardOf) -> None:
    assert board.stop() == 0
    board.start("--memory", "2G")


LAST_WORDS = r"; \d\.\d s ago it reported: (loading|computing|waiting for work), \w+; going on"
HARMS: dict[str, tuple[Harm, str, str]] = {
    "worker killed": (kill_worker, r"b2: killed: .*" + LAST_WORDS, "exchange"),
    "worker stopped": (stop_worker, r"b2: its worker is stopped" + LAST_WORDS, "star"),
    "board killed": (kill_board, r"b2 .*" + LAST_WORDS, "exchange"),
    "board stopped": (stop_board, r"b2 .*" + LAST_WORDS, "star"),
    "daemon restarted": (restart_daemon, r"b2.*" + LAST_WORDS, "exchange"),
}
OVER = [(harm, transport) for harm in HARMS for transport in ("stream", "zeromq")]


@pytest.mark.parametrize(("harm", "transport"), OVER, ids=map(" ".join, OVER))
def test_the_text_goes_on_as_it_would_have(
    cluster: ClusterOf, smollm2_pack: Path, undisturbed: str, harm: str, transport: str
) -> None:
    how, told, allreduce = HARMS[harm]
    over = ["--allreduce", allreduce, "--transport", transport]
    session = begin(cluster, smollm2_pack, "-c", "512", *over)
    how(cluster[2])
    session.err.wait(told, 8.0)
    assert session.wait() == 0, session.err.text
    assert session.out.text == undisturbed, session.err.text


def test_a_board_with_some_of_the_head_may_die_as_well(
    cluster: ClusterOf, smollm2_pack: Path, undisturbed: str
) -> None:
    session = begin(cluster, smollm2_pack, "-c", "512", "-ts", "1,1,1", "--split-head")
    kill_worker(cluster[2])
    session.err.wait(r"b2: killed: .*" + LAST_WORDS, 8.0)
    assert session.wait() == 0, session.err.text
    assert session.out.text == undisturbed, session.err.text


def test_one_board_after_another(cluster: ClusterOf, smollm2_pack: Path, undisturbed: str) -> None:
    session = begin(cluster, smollm2_pack)
    kill_board(cluster[3])
    session.err.wait(r"^2 boards:|, 2 boards:", 10)
    cluster[2].worker()
    kill_board(cluster[2])
    assert session.wait() == 0, session.err.text
    assert session.out.text == undisturbed, session.err.text


def test_the_rest_cannot_hold_the_model(smollm2_pack: Path, tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2, ["220M", "300M"]) as cluster:
        cluster.shelve(smollm2_pack)
        session = begin(cluster, smollm2_pack, "-c", "8192")
        kept = session.out.text
        kill_board(cluster[2])
        assert session.wait() == 1
        assert session.out.text.startswith(kept)
        error = session.err.text.splitlines()[-1]
        assert error.startswith("error: ")
        assert "the boards cannot hold the model" in error
        assert re.search(r"context of 8192 tokens 18\d MB", error)
        assert re.search(r"b1 \S+ MB of \S+ MB", error)
        assert re.search(LAST_WORDS, session.err.text)
        assert "b2" in session.err.text
        assert "Traceback" not in session.err.text


# picoedge, with a disk given up after 4 s without a finished read instead of 30.
HASTY = """
import sys
from picoedge import files
files.READ_STALL_S = 4.0
from picoedge.cli.main import main
sys.exit(main())
"""


def test_the_hubs_own_disk_never_answers(smollm2_pack: Path, shim: Path, tmp_path: Path) -> None:
    faulty = {"LD_PRELOAD": shim, "FAULTY_PATH": ".safetensors"}
    over = ["-c", "256", "--cluster", "-ts", "1,1", "--memory", "100M", "--window-io", "direct"]
    with cluster_of(tmp_path, 2) as cluster:
        cluster.shelve(smollm2_pack)
        count = tmp_path / "reads"
        command = ("generate", smollm2_pack, "-p", PROMPT, "-n", str(COUNT), *HOW, *over)
        sound = cluster[1].run(*command, **faulty, FAULTY_COUNT=count)
        assert sound.wait() == 0, sound.err.text
        after = int(count.read_text()) * 2 // 3
        hasty = (sys.executable, "-c", HASTY)
        session = cluster[1].run(
            *command, program=hasty, **faulty, FAULTY_HOW="hang", FAULTY_AFTER=after
        )
        worker = cluster[2].worker()
        session.out.wait(SOME_WORDS)
        said = r"shard \S+, byte \d+: the storage has not answered for 4 s \(.*picoedge verify\)$"
        session.err.wait(rf"^error: \S+, {said}", 45)
        worker.wait(3)
        assert session.wait() == 1
        for board in cluster.boards:
            board.await_free()
        assert "going on" not in session.err.text
        assert "Traceback" not in session.err.text
        assert sound.out.text.startswith(session.out.text.rstrip("\n"))


def test_the_report_after_a_loss_is_of_the_present_plan(
    cluster: ClusterOf, smollm2_pack: Path
) -> None:
    how = ["-c", "256", "-ts", "1,1,1", "--memory", "130M", "--json"]
    command = ["generate", smollm2_pack, "-p", PROMPT, "-n", str(COUNT), *HOW, *how]
    undisturbed = cluster[1].run(*command, "--cluster")
    assert undisturbed.wait() == 0, undisturbed.err.text
    disturbed = cluster[1].run(*command, "--cluster")
    cluster[2].worker()
    until(lambda: cluster[2].does() == "computing", "b2 computes")
    kill_board(cluster[2])
    assert disturbed.wait() == 0, disturbed.err.text
    before, after = last_json(undisturbed), last_json(disturbed)
    assert [loss["board"] for loss in after["cluster"]["losses"]] == ["b2"]
    shards = {share["board"] for share in after["cluster"]["shares"]}
    assert "b2" not in shards
    # Two boards stream what three hold in memory, or stream more of it.
    streamed = [(report["plan"] or {}).get("streamed_units", 0) for report in (before, after)]
    assert streamed[0] < streamed[1], (before["plan"], after["plan"])
    assert after["resident_mb"] is not None
