"""What a board can do is measured again until it is known, and kept for the next start."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from picoedge.daemon import self_measurement
from picoedge.daemon.board_probe import LEAST_MATRIX, matrix_bytes
from picoedge.daemon.memory import board_memory
from picoedge.daemon.memory.board_memory import PROBE, BoardMemory, BoardOptions
from picoedge.daemon.memory.ledger import Use
from picoedge.daemon.self_measurement import (
    FACTS_FILE,
    LEAST_BYTES,
    LONGEST_REST_S,
    MOST_BYTES,
    REST_S,
    ROOM_S,
    SelfMeasurement,
)
from picoedge.mesh.transport.loop import Loop

FACTS = {"cores": 4, "compute_bytes_per_s": 1e9}
MEASURED = ["sh", "-c", f"echo '{json.dumps(FACTS)}'"]
KILLED, STANDS_STILL = ["sh", "-c", "kill -9 $$"], ["sleep", "60"]


class Board:
    """A board whose probe is a command, and whose time is the test's; `run` lets the loop turn."""

    def __init__(self, folder: Path) -> None:
        self.now_s, self.lines = 0.0, list[str]()
        self.command, self.rooms = MEASURED, list[int]()
        self.folder, self.loop = folder, Loop(lambda: self.now_s)
        self.memory = BoardMemory(1 << 30, self.loop.clock, str, folder)
        self.options = BoardOptions(1 << 30, folder / "shelf")
        self.options.shelf.mkdir(exist_ok=True)

    def start(self, nbytes: int) -> subprocess.Popen[bytes]:
        self.rooms.append(nbytes)
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=pipe)

    def measurement(self) -> SelfMeasurement:
        return SelfMeasurement(
            self.loop, self.memory, self.folder, self.options, self.lines.append, self.start
        )

    def run(self, until: Callable[[], bool]) -> None:
        self.loop.after(0.0, lambda: None)  # no turn waits for ever
        while not until():
            self.loop.turn()

    def later(self, seconds: float) -> None:
        self.now_s += seconds
        self.loop.after(0.0, lambda: None)
        self.loop.turn()


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.setattr(board_memory, "available_bytes", lambda: 1 << 40)
    made = Board(tmp_path)
    yield made
    made.loop.close()


def test_a_killed_probe_is_started_again_ever_more_rarely(board: Board) -> None:
    board.command, rests = KILLED, list[float]()
    with closing(board.measurement()) as measurement:
        for number in range(1, 12):
            board.run(lambda n=number: len(board.lines) == n)  # type: ignore[misc]
            began_s = board.now_s
            while len(board.rooms) == number:
                board.later(REST_S / 2)
            rests.append(board.now_s - began_s)
        assert measurement.facts is None
        assert rests == sorted(rests)
        assert rests[:3] == [REST_S, 2 * REST_S, 4 * REST_S]
        assert rests[-1] == LONGEST_REST_S
        board.command = MEASURED
        board.run(lambda: len(board.lines) == 12)
        board.later(LONGEST_REST_S)
        board.run(lambda: measurement.facts is not None)
        assert measurement.facts == FACTS
    assert "could not be measured: tried again in 5 s" in board.lines[0]


def test_what_was_measured_last_counts_meanwhile(board: Board) -> None:
    with closing(board.measurement()) as measurement:
        board.run(lambda: measurement.facts is not None)
    board.command = KILLED
    with closing(board.measurement()) as measurement:
        assert measurement.facts == FACTS
        board.run(lambda: bool(board.lines))
        assert measurement.facts == FACTS


@pytest.mark.parametrize("spoil", ["{", "[]", '{"facts": 5}', '{"of": {}, "facts": {"cores": 9}}'])
def test_a_file_that_is_damaged_or_of_another_board_counts_for_nothing(
    board: Board, spoil: str
) -> None:
    (board.folder / FACTS_FILE).write_text(spoil)
    board.command = STANDS_STILL
    with closing(board.measurement()) as measurement:
        assert measurement.facts is None


def test_a_job_ends_the_probe_which_runs_again_when_there_is_room(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_first = list[Any]()
    monkeypatch.setattr(
        self_measurement, "set_goes_first", lambda pid, first: goes_first.append((pid, first))
    )
    with closing(board.measurement()) as measurement:
        board.run(lambda: measurement.facts is not None)
    board.command = STANDS_STILL
    with closing(board.measurement()) as measurement:
        process = cast(Any, measurement)._process
        assert goes_first[-1] == (process.pid, True)
        assert [use["use"] for use in board.memory.report()] == [Use.MEASURING.value]
        job: Any = type("Job", (), {"user": b"hub", "spec": None, "sender": "hub"})()
        board.memory.give_all(job, Use.ANSWER)
        assert [use["use"] for use in board.memory.report()] == [Use.ANSWER.value]
        board.run(lambda: cast(Any, measurement)._process is None)
        assert not board.lines  # that is no failure
        board.command, count = MEASURED, len(board.rooms)
        board.later(ROOM_S)
        assert len(board.rooms) == count  # the job has it all
        board.memory.release(b"hub")
        board.later(ROOM_S)
        assert board.rooms[count:] == [MOST_BYTES]
        board.run(lambda: not board.memory.report())


def test_a_small_board_is_measured_in_the_room_there_is(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_memory, "available_bytes", lambda: LEAST_BYTES // 2)
    with closing(board.measurement()) as measurement:
        assert board.rooms == [LEAST_BYTES // 2]
        board.run(lambda: measurement.facts is not None)
    with closing(board.measurement()):
        assert len(board.rooms) == 1  # figures are there: it waits for room
        monkeypatch.setattr(board_memory, "available_bytes", lambda: 1 << 40)
        board.later(ROOM_S)
        assert board.rooms[1:] == [MOST_BYTES]


def test_a_probe_is_ended_with_what_it_left(board: Board) -> None:
    scratch = board.options.shelf / ".probe-abcd"
    board.command = ["sh", "-c", f"mkdir {scratch}; : > {scratch}/.lock; echo; sleep 60"]
    measurement = board.measurement()
    board.run((scratch / ".lock").exists)
    measurement.close()
    measurement.close()
    assert list(board.options.shelf.iterdir()) == []
    assert board.memory.give_probe(1, lambda: None) == 1
    board.memory.release(PROBE)


def test_the_matrix_fits_the_room() -> None:
    assert matrix_bytes(1 << 40) == 64 << 20
    assert matrix_bytes(50 << 20) == 32 << 20
    assert matrix_bytes(0) == matrix_bytes(-5) == LEAST_MATRIX
