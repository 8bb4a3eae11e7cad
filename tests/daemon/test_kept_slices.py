"""Slices that stay loaded after their job: their next users, and their ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from daemon_boards import SUPPORT, Board, pushed
from tiny_worker import KEPT_BYTES

from picoedge.daemon import workers
from picoedge.daemon.memory import board_memory


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT), prepend=":")
    with ExitStack() as stack:
        yield Board(tmp_path, stack, keep_s=3600)


def answer(board: Board, name: str, sliced: str = "s", *, user: Any = None, leave: bool = False):  # type: ignore[no-untyped-def]
    """A job from its reservation to its worker's end; the connection, unless it is to `leave`."""
    client = board.connect(user or board.hub)
    client.ask("job-reserve", {"job": "tiny"})
    spec = {**board.spec(name, user), "slice": sliced}
    client.ask("job-start", {"job": "tiny", "spec": spec})
    assert pushed(client, "job-listens")["group"] == name
    pid = worker_pid(board)
    if leave:
        client.close()
    (board.folder / name).touch()
    if not leave:
        assert pushed(client, "job-ended")["message"] == "the session is over"
        client.close()
    return pid


def worker_pid(board: Board) -> int:
    holder = board.service._holder
    assert holder is not None
    assert holder.worker is not None
    return holder.worker.pid


def uses(board: Board) -> list[str]:
    return [str(use["use"]) for use in board.state()["uses"]]


def kept_pid(board: Board) -> int | None:
    kept = board.service._workers.kept
    return kept.worker.pid if kept else None


@pytest.mark.parametrize("leave", [False, True])
def test_the_next_job_with_the_same_slice_has_the_same_process(board: Board, leave: bool) -> None:
    first = answer(board, "one", leave=leave)
    state = board.wait(does="free")
    assert (state["uses"][0]["use"], state["uses"][0]["bytes"]) == ("kept", KEPT_BYTES)
    assert state["uses"][0]["holder"] == "hub"
    assert kept_pid(board) == first
    assert answer(board, "two", user=board.guest) == first
    assert board.wait(does="free")["uses"][0]["holder"] == "guest"


def test_a_kept_slice_takes_again_what_it_had_planned(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache was given up meanwhile: others must leave it the memory for one."""
    answer(board, "one")
    board.wait(does="free")
    monkeypatch.setattr(workers, "lasting_bytes", lambda pid: 100)
    held = board.service.memory_requests._hold({"pid": os.getpid(), "bytes": 0})
    assert held["leave"] == KEPT_BYTES - 100
    client = board.connect(board.hub)
    client.ask("job-reserve", {"job": "tiny"})
    client.ask("job-start", {"job": "tiny", "spec": {**board.spec("two"), "slice": "s"}})
    holder = board.service._holder
    assert holder is not None
    assert holder.planned_bytes == KEPT_BYTES


def test_another_slice_begins_when_the_kept_one_is_gone(board: Board) -> None:
    first = answer(board, "one")
    board.wait(does="free")
    second = answer(board, "two", "another")
    assert second != first
    assert not Path(f"/proc/{first}").exists()
    board.wait(does="free")
    assert kept_pid(board) == second


def test_this_boards_own_hub_has_the_memory_of_a_kept_slice(board: Board) -> None:
    first = answer(board, "one")
    board.wait(does="free")
    own = board.connect(board.running.identity)
    own.ask("job-reserve", {"job": "tiny"})
    assert not Path(f"/proc/{first}").exists()
    assert uses(board) == ["answer"]
    own.close()
    assert board.wait(does="free")["uses"] == []


def test_training_waits_for_the_end_of_a_kept_slice(board: Board) -> None:
    first = answer(board, "one")
    board.wait(does="free")
    board.connect(board.hub).ask("job-start", {"job": "tiny training", "spec": board.spec("run")})
    assert board.state()["does"] == "free"
    assert uses(board) == ["kept"]
    os.kill(first, signal.SIGKILL)
    board.wait(does="computing", model="tiny run")
    assert uses(board) == ["training"]


@pytest.mark.parametrize("why", ["time", "memory"])
def test_a_kept_slice_ends_with_its_time_or_where_memory_is_short(
    board: Board, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = answer(board, "one")
    board.wait(does="free")
    if why == "time":
        monkeypatch.setattr(board.service, "_options", board.options(keep_s=0.01))
    else:
        monkeypatch.setattr(board_memory, "available_bytes", lambda: 1 << 20)
    assert board.wait(does="free", uses=[])
    assert not Path(f"/proc/{first}").exists()


def test_a_worker_that_does_not_let_go_is_ended(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("picoedge.daemon.workers.LET_GO_S", 0.1)
    client = board.connect(board.hub)
    client.ask("job-reserve", {"job": "tiny"})
    spec = {**board.spec("one"), "slice": "s"}
    client.ask("job-start", {"job": "tiny", "spec": spec})
    board.wait(does="computing")
    pid = worker_pid(board)
    client.close()
    board.wait(does="free", uses=[])
    assert not Path(f"/proc/{pid}").exists()
