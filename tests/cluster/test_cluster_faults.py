"""Boards that are killed, stopped or restarted: the text goes on as it would have."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_answers import (
    COUNT,
    HOW,
    LAST_REPORT,
    PROMPT,
    SOME_WORDS,
    answer,
    begin,
    check_told_and_undisturbed,
)
from cluster_boards import BoardOf, ClusterOf, cluster_of, last_json, until

from picoedge.units import MB

pytest_plugins = ["fault_cluster"]

# A session that waits a second for a board instead of half a minute.
IMPATIENT = [
    sys.executable,
    "-c",
    "import sys; from picoedge.cluster import recovery; from picoedge.cli.main import main; "
    "recovery.RETURN_S = 1.0; sys.exit(main())",
]


def kill_board(board: BoardOf) -> None:
    board.signal_all(signal.SIGKILL)


def stop_board(board: BoardOf) -> None:
    board.signal_all(signal.SIGSTOP)


def restart_daemon(board: BoardOf) -> None:
    assert board.stop() == 0
    board.start("--memory", "2G")


def test_the_hubs_daemon_is_restarted_in_an_answer(
    cluster: ClusterOf, smollm2_pack: Path, undisturbed: str
) -> None:
    session = begin(cluster, smollm2_pack)
    restart_daemon(cluster[1])
    assert session.wait() == 0, session.err.text
    assert session.out.text == undisturbed, session.err.text


def test_the_hubs_daemon_is_waited_for_while_it_stands_still(
    cluster: ClusterOf, smollm2_pack: Path, undisturbed: str
) -> None:
    session = begin(cluster, smollm2_pack)
    cluster[1].daemon.signal(signal.SIGSTOP)
    try:
        session.err.wait(r"waiting up to 180 s for this board's daemon", 30.0)
    finally:
        cluster[1].daemon.signal(signal.SIGCONT)
    assert session.wait() == 0, session.err.text
    assert session.out.text == undisturbed, session.err.text


def test_a_hub_that_stood_still_holds_it_against_nobody(
    cluster: ClusterOf, smollm2_pack: Path, undisturbed: str
) -> None:
    session = begin(cluster, smollm2_pack)
    for _ in range(2):
        session.signal(signal.SIGSTOP)
        for board in cluster.boards[1:]:  # its workers have ended, as it said nothing
            until(lambda board=board: not board.workers(), "it was missed", 20.0)
        session.signal(signal.SIGCONT)
        session.err.wait(r"going on$", 20.0)
        for board in cluster.boards[1:]:
            board.worker()
    assert session.wait() == 0, session.err.text
    assert "without it" not in session.err.text
    assert session.out.text == undisturbed, session.err.text


HARMS: dict[str, tuple[Callable[[BoardOf], None], str]] = {
    "killed": (kill_board, "exchange"),
    "stopped": (stop_board, "star"),
    "daemon restarted": (restart_daemon, "exchange"),
}
CASES = [(harm, transport) for harm in HARMS for transport in ("stream", "zeromq")]


@pytest.mark.parametrize(("harm", "transport"), CASES, ids=map(" ".join, CASES))
def test_the_text_goes_on_without_the_board(
    cluster: ClusterOf, smollm2_pack: Path, undisturbed: str, harm: str, transport: str
) -> None:
    how, allreduce = HARMS[harm]
    over = ["--allreduce", allreduce, "--transport", transport]
    session = begin(cluster, smollm2_pack, "-c", "512", *over)
    how(cluster[2])
    check_told_and_undisturbed(session, "b2.*", undisturbed)


def test_one_board_after_another(cluster: ClusterOf, smollm2_pack: Path, undisturbed: str) -> None:
    session = answer(cluster[1], smollm2_pack, "--cluster", "--boards", "3", "-c", "512")
    session.out.wait(SOME_WORDS)
    kill_board(cluster[3])
    session.err.wait(r"^2 boards:|, 2 boards:", 10)
    cluster[2].worker()
    kill_board(cluster[2])
    assert session.wait() == 0, session.err.text
    assert session.out.text == undisturbed, session.err.text


def test_the_rest_cannot_hold_the_model(smollm2_pack: Path, tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2, ["220M", "300M"]) as cluster:
        cluster.shelve(smollm2_pack)
        words = ["generate", smollm2_pack, "-p", PROMPT, "-n", str(COUNT), *HOW, "-c", "8192"]
        session = cluster[1].run(*words, "--cluster", "--boards", "2", program=IMPATIENT)
        session.out.wait(SOME_WORDS)
        kept = session.out.text
        kill_board(cluster[2])
        assert session.wait() == 1
        assert session.out.text.startswith(kept)
        error = session.err.text.splitlines()[-1]
        assert error.startswith("error: ")
        assert "the boards cannot hold the model" in error
        assert re.search(r"context of 8192 tokens 18\d MB", error)
        assert re.search(r"b1 \S+ MB of \S+ MB", error)
        assert re.search(LAST_REPORT, session.err.text)
        awaited = "waiting up to 1 s for b2: the boards that are there cannot hold the model"
        assert session.err.text.count(awaited) == 1
        assert "Traceback" not in session.err.text


def test_the_report_after_a_loss_is_of_the_present_plan(
    cluster: ClusterOf, smollm2_pack: Path
) -> None:
    how = ["-c", "256", "-ts", "1,1,1", "--memory", "120M", "--json"]
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
    for report in (before, after):
        hub = next(each for each in report["cluster"]["shares"] if each["board"] == "b1")
        assert report["plan"]["touched_bytes_per_token"] == hub["weights_mb"] * MB
    assert after["resident_mb"] is not None
