"""The slice of a board's own session: given to its daemon, kept, fetched, given up."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from daemon_boards import SUPPORT, Board, pushed
from shelf_models import packed_tiny

from picoedge.daemon import workers
from picoedge.daemon.memory import board_memory
from picoedge.daemon.memory.hub_slice import MemorySocket
from picoedge.engine.fit import LEFT_FREE, is_pressed
from picoedge.engine.options import OpenOptions
from picoedge.host import resources
from picoedge.jobs import kept_memory
from picoedge.jobs.kept_memory import (
    claim_memory,
    free_kept,
    hold_memory,
    keep_slice,
    make_room,
    take_slice,
    tell_memory,
)
from picoedge.mesh.transport.client import Client
from picoedge.store.pack.reader import Pack

KEY: dict[str, Any] = {
    "pack_id": "ab" * 16,
    "part": {"attention": [0, 1], "ffn": [0, 2], "head_shards": [0, 3], "owns_head": True},
    "n_ctx": 64,
    "kv_bits": 16,
    "window_io": "auto",
    "kernels": "",
}
OTHER = {**KEY, "n_ctx": 32}
NBYTES, SESSION = 1 << 20, "ab" * 8


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT), prepend=":")
    with ExitStack() as stack:
        board = Board(tmp_path, stack, keep_s=3600)
        running = board.running
        handler = board.service.memory_requests.on_request
        made = running.do(lambda: MemorySocket(tmp_path, running.node.rpc.loop, handler))
        stack.callback(lambda: running.do(made.close))
        yield board


def memory() -> int:
    fd = os.memfd_create("slice", os.MFD_CLOEXEC)
    os.write(fd, b"w" * NBYTES)
    return fd


def session(board: Board, wanted: dict[str, Any] | None = None) -> Client:
    """This board's own session, which has the board."""
    client = board.connect(board.running.identity)
    client.ask("job-reserve", {"job": "tiny", **({"slice": wanted} if wanted else {})})
    return client


def leave(board: Board, client: Client, key: dict[str, Any] = KEY) -> None:
    assert keep_slice(board.folder, key, "tiny", memory)
    client.close()
    board.wait(does="free")


def uses(board: Board) -> list[tuple[str, int]]:
    return [(str(use["use"]), int(use["bytes"])) for use in board.state()["uses"]]


def left_by_a_session(board: Board) -> None:
    leave(board, session(board))
    assert uses(board) == [("kept", NBYTES)]
    assert board.state()["uses"][0]["model"] == "tiny"


def test_the_next_session_fetches_what_the_last_one_left(board: Board) -> None:
    left_by_a_session(board)
    client = session(board, KEY)
    assert [use for use, _ in uses(board)] == ["answer"]
    assert take_slice(board.folder, OTHER) is None
    fd = take_slice(board.folder, KEY)
    assert fd is not None
    assert os.fstat(fd).st_size == NBYTES
    assert board.service._hub_slice.nbytes == 0  # the session owns it now
    assert take_slice(board.folder, KEY) is None
    os.close(fd)
    client.close()
    assert board.wait(does="free")["uses"] == []


def test_a_slice_that_is_not_fetched_is_kept_again(board: Board) -> None:
    left_by_a_session(board)
    session(board, KEY).close()  # killed before it could
    board.wait(does="free")
    assert uses(board) == [("kept", NBYTES)]


@pytest.mark.parametrize("wanted", [None, OTHER, {"pack_id": 1}])
def test_a_session_that_needs_another_slice_has_its_memory(board: Board, wanted: Any) -> None:
    left_by_a_session(board)
    session(board, wanted)
    assert [use for use, _ in uses(board)] == ["answer"]
    assert board.service._hub_slice.nbytes == 0
    assert take_slice(board.folder, KEY) is None


def test_an_answer_for_another_board_has_its_memory(board: Board) -> None:
    left_by_a_session(board)
    client = board.connect(board.hub)
    client.ask("job-reserve", {"job": "tiny", "slice": KEY})
    client.ask("job-start", {"job": "tiny", "spec": board.spec("one")})
    pushed(client, "job-listens")
    assert [use for use, _ in uses(board)] == ["answer"]
    assert board.service._hub_slice.nbytes == 0


def test_a_program_of_this_board_has_it_given_up(board: Board) -> None:
    assert not free_kept(board.folder)
    left_by_a_session(board)
    assert free_kept(board.folder)
    assert uses(board) == []
    assert board.service._hub_slice.nbytes == 0


def test_an_answer_without_boards_leaves_a_worker_what_it_is_still_to_take(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hold_memory(board.folder, 0) == 0
    client = board.connect(board.hub)
    client.ask("job-reserve", {"job": "tiny"})
    client.ask("job-start", {"job": "tiny", "spec": board.spec("one")})
    pushed(client, "job-listens")
    holder = board.service._holder
    assert holder is not None
    assert holder.worker is not None
    whole, report = holder.worker.report(), {"stage": "loading", "done": 3, "total": 10}
    monkeypatch.setattr(workers, "lasting_bytes", lambda pid: 100)
    monkeypatch.setattr(holder.worker, "report", lambda: {**whole, **report})
    report["stage"] = "waiting for work"
    assert hold_memory(board.folder, 0) == 0
    holder.planned_bytes = 150  # its cache grows until then
    assert hold_memory(board.folder, 0) == 50
    holder.planned_bytes, holder.given_bytes = 0, 400
    monkeypatch.setattr(kept_memory, "PLANNING_S", 0.5)
    for stage in ("starting", "pulling", "loading"):  # it does not know: it was waited for
        report["stage"] = stage
        assert hold_memory(board.folder, 0) == 300


def still_to_take(board: Board) -> int | None:
    """What others are still to take, by the first answer."""
    with kept_memory._connected(board.folder) as connection:
        return kept_memory._hold(connection, {"bytes": 0})[0]


def test_a_session_that_has_just_been_given_the_board_is_waited_for(board: Board) -> None:
    client = board.connect(board.hub)
    client.ask("job-reserve", {"job": "tiny"})
    assert still_to_take(board) is None
    client.close()
    board.wait(does="free")
    assert still_to_take(board) == 0


def test_a_session_without_a_worker_is_not_waited_for_for_long(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "PLANNING_S", 0.0)
    board.connect(board.hub).ask("job-reserve", {"job": "tiny"})
    assert still_to_take(board) == 0


def test_the_hub_of_this_board_is_left_what_it_has_planned(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "lasting_bytes", lambda pid: 100 * (pid == os.getpid()))
    client = board.connect(board.running.identity)
    client.ask("job-reserve", {"job": "tiny", "session": SESSION})
    tell_memory(board.folder, 150, session="cd" * 8)
    assert still_to_take(board) is None
    tell_memory(board.folder, 150, session=SESSION)
    assert still_to_take(board) == 50


def test_two_answers_without_boards_leave_each_other_what_they_have_said(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_memory, "own_bytes", lambda *_: 1000)
    board.service.memory.hold(os.getppid(), 5000)
    assert hold_memory(board.folder, 0) == 4000
    board.service.memory.hold(os.getppid(), 500)  # its plan took less
    assert hold_memory(board.folder, 0) == 0


def test_a_job_gets_what_a_starting_answer_has_said_that_it_takes(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_memory, "_is_alone", lambda *_: True)
    monkeypatch.setattr(board_memory, "picoedge_pids", lambda proc: [os.getpid()])
    monkeypatch.setattr(board_memory, "own_bytes", lambda *_: 1000)
    starting = board.service.memory.job_bytes
    hold_memory(board.folder, 128 << 20)
    assert board.service.memory.job_bytes < starting - (32 << 20)
    hold_memory(board.folder, 0)
    assert board.service.memory.job_bytes > starting + (32 << 20)


def test_training_waits_for_its_end(board: Board) -> None:
    left_by_a_session(board)
    board.connect(board.hub).ask("job-start", {"job": "tiny training", "spec": board.spec("run")})
    assert board.state()["does"] == "free"
    assert free_kept(board.folder)
    board.wait(does="computing", model="tiny run")


def test_only_a_session_that_has_the_board_is_asked_for_its_slice(board: Board) -> None:
    assert not keep_slice(board.folder, KEY, "tiny", lambda: pytest.fail("it is not wanted"))
    session(board)
    with open("/proc/self/exe", "rb") as file:  # a file, but none of memory
        assert not keep_slice(board.folder, KEY, "tiny", lambda: os.dup(file.fileno()))
    assert board.service._hub_slice.nbytes == 0


def test_a_board_that_keeps_nothing_asks_for_nothing(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board.service.memory_requests, "_keeps", False)
    session(board)
    assert not keep_slice(board.folder, KEY, "tiny", lambda: pytest.fail("it is not wanted"))


@pytest.mark.parametrize("message", [b"", b"[", b"[]", b"{}", b'{"do": "take", "slice": []}'])
def test_a_malformed_request_leaves_the_kept_slice(board: Board, message: bytes) -> None:
    left_by_a_session(board)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bad:
        with kept_memory.short_path(board.folder) as path:
            bad.connect(path)
        bad.send(message)
        bad.settimeout(5)
        bad.recv(100)
    assert uses(board) == [("kept", NBYTES)]


@pytest.mark.parametrize("do", ["hold", "free", "keep", "take", "sing"])
def test_a_file_that_comes_unasked_is_closed(board: Board, do: str) -> None:
    left_by_a_session(board)
    fd = os.memfd_create("stray", os.MFD_CLOEXEC)
    with kept_memory._connected(board.folder) as connection:
        kept_memory.send_message(connection, {"do": do, "bytes": 0}, fd)
        kept_memory.receive_message(connection)
    os.close(fd)
    open_files = []
    for each in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that the folder was listed by
            open_files.append(os.readlink(f"/proc/self/fd/{each}"))
    assert not [name for name in open_files if "stray" in name]


def test_without_a_daemon_nothing_is_kept(tmp_path: Path) -> None:
    assert not keep_slice(tmp_path, KEY, "tiny", lambda: pytest.fail("unasked"))
    assert take_slice(tmp_path, KEY) is None
    assert not free_kept(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("available", "memory_bytes", "left"),
    [(1 << 34, None, [("kept", NBYTES)]), (1 << 20, None, []), (1 << 34, 1 << 27, None)],
)
def test_a_command_without_boards_has_the_memory_where_it_is_short(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    available: int, memory_bytes: int | None, left: Any,
) -> None:  # fmt: skip
    pack = Pack.open(packed_tiny(tmp_path / "models"))
    left_by_a_session(board)
    monkeypatch.setattr(resources, "available_bytes", lambda: available)
    options = OpenOptions(memory_bytes=memory_bytes)
    if is_pressed(pack, options, LEFT_FREE):
        make_room(board.folder, pack, options)
    assert uses(board) == ([("kept", NBYTES)] if left is None else left)


@pytest.mark.parametrize(("needed", "left"), [(1 << 19, [("kept", NBYTES)]), (1 << 21, [])])
def test_training_has_the_memory_where_it_is_short(
    board: Board, monkeypatch: pytest.MonkeyPatch, needed: int, left: Any
) -> None:
    left_by_a_session(board)
    monkeypatch.setattr(resources, "available_bytes", lambda: 1 << 20)
    claim_memory(board.folder, needed)
    assert uses(board) == left
    monkeypatch.setattr(board_memory, "own_bytes", lambda *_: 0)
    assert board.service.memory.untaken_bytes(0) == needed  # which others leave it
