"""What a daemon makes of what a worker says, and of how it ends."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from picoedge.daemon.worker_process import LINE_BYTES, WorkerProcess
from picoedge.jobs.spec import WorkerConfig

Start = Callable[[str], tuple[WorkerProcess, list[Mapping[str, Any]]]]
ENOUGH_MS = 20_000


def config() -> WorkerConfig:
    return WorkerConfig("test", {}, None, Path("shelf"), "127.0.0.1", Path(), 1 << 20, None)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a program of the shell's in place of a worker; what it says is collected."""
    with ExitStack() as stack:

        def started(script: str) -> tuple[WorkerProcess, list[Mapping[str, Any]]]:
            program, heard = tmp_path / "worker", list[Mapping[str, Any]]()
            program.write_text(f"#!/bin/sh\nread order\n{script}\n")
            program.chmod(0o755)
            monkeypatch.setattr(sys, "executable", str(program))
            worker = WorkerProcess("worker", config(), heard.append)
            stack.callback(worker.end)
            return worker, heard

        yield started


def listen(worker: WorkerProcess) -> None:
    """Until it has ended, as the daemon does."""
    poll, is_open = select.poll(), True
    poll.register(worker.stdout.fileno(), select.POLLIN)
    while is_open:
        assert poll.poll(ENOUGH_MS), "it says nothing"
        is_open = worker.read()


def test_lines_of_libraries_are_harmless(start: Start) -> None:
    short = """echo warning; echo 3; echo '[1]'; echo '{"failed": 7}'; echo '{"failed"'"""
    long = rf"head -c {3 * LINE_BYTES} /dev/zero | tr '\0' '['; echo"
    worker, heard = start(f"""{short}; {long}; echo '{{"port": 4711}}'""")
    listen(worker)
    assert [line["port"] for line in heard if "port" in line] == [4711]
    assert worker.failure is None
    assert worker.why_ended() == {"message": "the session is over", "hint": ""}


def test_the_failure_that_a_worker_reports_is_passed_on(start: Start) -> None:
    worker, heard = start("""echo '{"failed": {"message": "no room", "hint": "rm"}}'; exit 1""")
    listen(worker)
    assert len(heard) == 1
    failed = {"message": "no room", "hint": "rm", "board": "", "key": "", "failed": True}
    assert worker.why_ended() == failed


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 3", "it left with code 3"),
        ("kill -KILL $$", "killed: by hand, or by the kernel for want of memory"),
        ("kill -ABRT $$", "it was ended by signal 6"),
        ("kill -40 $$", "it was ended by signal 40"),  # which has no name
    ],
)
def test_how_it_ended_is_said_in_words(start: Start, script: str, said: str) -> None:
    worker, _ = start(script)
    listen(worker)
    assert worker.why_ended()["message"] == said
