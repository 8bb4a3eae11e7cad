"""The progress line and the log: what they say, and what a lost terminal or disk does to them."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from picoedge.errors import PicoedgeError, StorageError
from picoedge.train.run.log import LogFile, read_log
from picoedge.train.run.progress import ProgressReport, format_rate, format_time
from picoedge.train.run.samples import Samples
from picoedge.train.step.trainer import StepResult


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def seconds(each: float = 1.0) -> Callable[[], float]:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += each
        return now

    return clock


def result(step: int, loss: float = 3.0) -> StepResult:
    return StepResult(step, loss, 1.0, 1e-3)


def test_the_line_has_loss_held_out_loss_speed_time_left_and_memory() -> None:
    stream = Terminal()
    report = ProgressReport(stream, 100, seconds())
    report.evaluated(0, 4.5, is_best=True)
    report.stepped(result(1), 4096)
    line = stream.getvalue().rpartition("\x1b[K")[2]
    head, _, memory = line.rpartition("  ")
    assert head == "step 1/100  loss 3.000  held out 4.500  4.1k tok/s  99 s left"
    assert memory.endswith((" MB", " GB"))  # of this process, which has run other tests
    report.erase()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_without_a_terminal_there_are_few_whole_lines() -> None:
    stream = io.StringIO()
    report = ProgressReport(stream, 100, seconds())
    for step in range(1, 101):
        report.stepped(result(step), 10)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "31/100", "61/100", "91/100", "100/100"]
    assert "\x1b" not in stream.getvalue()


def test_a_lost_terminal_does_not_end_a_run() -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    report = ProgressReport(Gone(), 10, seconds())
    report.stepped(result(1), 10)
    report.not_saved(1, StorageError("no room", "free some"))
    report.erase()


def test_notes_leave_the_line_of_progress() -> None:
    stream = Terminal()
    report = ProgressReport(stream, 10, seconds())
    report.stepped(result(1), 10)
    report.not_saved(1, StorageError("no room in /x", "free some space"))
    report.say("a\x1b[2Jb\nc")
    said = stream.getvalue().rpartition("\r\x1b[K")[2].splitlines()
    assert said == [
        "note: step 1 could not be kept: no room in /x (free some space); training goes on",
        "a[2Jb c",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5990, "1 h 40 min"), (12_000, "3 h 20 min"),
     (36_000, "10 h"), (190_800, "2 d 5 h")],
)  # fmt: skip
def test_times(value: float, text: str) -> None:
    assert format_time(value) == text


def test_rates() -> None:
    assert [format_rate(rate) for rate in (740.2, 5210, 31_400)] == ["740", "5.2k", "31k"]


def test_a_log_goes_on_where_a_resumed_run_does(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = LogFile(path, seconds())
    log.begin(0)
    for step in (1, 2, 3):
        log.stepped(result(step), 10)
    log.evaluated(3, 2.5, is_best=True)
    log.close()
    with path.open("a") as file:
        file.write('{"step": 3, "lo')  # killed here
    log = LogFile(path, seconds())
    log.begin(2)
    log.stepped(result(3, 2.0), 10)
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line.get("loss")) for line in lines] == [
        (1, 3.0), (2, 3.0), (2, None), (3, 2.0),
    ]  # fmt: skip
    assert lines[2]["resumed"] is True
    assert lines[3]["seconds"] == lines[1]["seconds"] + 1  # time away is not counted
    assert read_log(path) == lines
    assert read_log(tmp_path / "none") == []


def test_a_held_out_loss_that_is_no_number_is_json(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log.jsonl", seconds())
    log.begin(0)
    log.evaluated(3, float("nan"), is_best=False)
    log.close()
    text = (tmp_path / "log.jsonl").read_text()
    assert json.loads(text) == {"step": 3, "held_out": None, "best": False}
    assert read_log(tmp_path / "log.jsonl") == [{"step": 3, "best": False}]


@pytest.mark.parametrize(("done", "told"), [(0, [5, 10, 15, 20, 25, 30]), (17, [20, 25, 30])])
def test_samples_come_as_steps_do(done: int, told: list[int]) -> None:
    """Also without text that is held out; a run that goes on has no more of them."""
    seen: list[tuple[int, str]] = []
    samples = Samples(30, done, lambda step: f"of {step}", lambda *each: seen.append(each))
    for step in range(done + 1, 31):
        samples.stepped(result(step), 10)
    assert seen == [(step, f"of {step}") for step in told]


def test_a_strange_log_is_read_as_far_as_it_makes_sense(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b'[]\n{"step": "1"}\n\xff\n{"step": 4, "loss": "x", "seconds": []}\n{"step": 5}'
    )
    assert read_log(path) == [{"step": 4}, {"step": 5}]


def test_a_full_disk_is_told_once_and_the_log_goes_on(tmp_path: Path) -> None:
    faults: list[PicoedgeError] = []
    log = LogFile(Path("/dev/full"), seconds(), faults.append)
    log._file = open("/dev/full", "a")  # noqa: SIM115
    for step in (1, 2, 3):
        log.stepped(result(step), 10)
    log.close()
    assert [fault.message == "/dev/full: no space left on device" for fault in faults] == [True]
