"""The first token of a session over boards that keep the last one's slices, and over cold ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from bench.children import BenchError, Unready
from bench.mesh_cluster import ANSWER_S, Cluster, Kind, cluster
from bench.mesh_models import MeshModels
from bench.recovery_answers import PROMPT, worker_of
from bench.report import Measured
from bench.speed import by_turns, ratio_of_seconds, seconds_of
from hw.lab import BoardLimits
from picoedge.jobs.kept_memory import free_kept

CARD = 10 << 20  # bytes a second: a slow card
KIND = Kind(3, (512 << 20,), limits=BoardLimits(disk_bytes_per_s=CARD), n_ctx=512, keep="1h")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
GONE_S = 20.0


def second_session(models: MeshModels, rounds: int) -> list[Measured]:
    """Seconds from a session's start to its first token: kept slices ÷ none, page caches cold."""
    if not os.access(DROP_CACHES, os.W_OK):
        raise Unready(f"{DROP_CACHES} cannot be written")
    with cluster(KIND, models.smollm2(), models.folder) as boards:
        boards.generate(PROMPT, 1)
        taken = by_turns(
            {
                "kept": lambda: _first_token(boards),
                "none": lambda: _first_token(boards, keep=False),
            },
            max(1, rounds // 2),
        )
        models.keep("second_session_ratio", boards.peaks())
    kept, none = (seconds_of(taken[name]) for name in ("kept", "none"))
    reused = sum(one["reused"] == KIND.boards - 1 for one in taken["kept"])
    note = (
        f"{kept:.1f} s, without {none:.1f} s; all workers reused {reused} of {len(taken['kept'])}"
    )
    return [ratio_of_seconds("second_session_ratio", taken, "kept", "none", note)]


def _first_token(boards: Cluster, *, keep: bool = True) -> dict[str, Any]:
    workers = [_kept(boards, index) for index in range(1, len(boards.boards))]
    hub = boards.hub.folder / "cluster"
    if not keep:
        _await(lambda: free_kept(hub))
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        _await(lambda: not any(worker_of(board) for board in boards.boards))
    os.sync()
    DROP_CACHES.write_text("3")
    seconds, whole_s, report = _answer(boards)
    after = [_kept(boards, index) for index in range(1, len(boards.boards))]
    reused = sum(pid in workers for pid in after)
    figures = {"seconds": seconds, "whole_s": whole_s, "reused": reused}
    return {**figures, "ttft_s": report["ttft_s"]}


def _answer(boards: Cluster) -> tuple[float, float, dict[str, Any]]:
    """Seconds until the report of one token, and until the process has ended; and the report.

    The report is written before the session hands over what it leaves. Raises BenchError.
    """
    wanted = ("--cluster", "--boards", str(len(boards.boards)))
    began = time.perf_counter()
    process = boards.hub.start(
        boards.session(boards.hub, PROMPT, 1, *wanted), env=boards.environment(boards.hub),
        text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    ending = threading.Timer(ANSWER_S, process.kill)
    ending.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
        process.communicate()
    finally:
        ending.cancel()
        process.kill()
        process.wait()
    whole_s = time.perf_counter() - began
    try:
        report = json.loads(line)
    except ValueError:
        raise BenchError(f"no answer: {line[-300:]}\n{boards.logs()}") from None
    if process.returncode or report["boards"] != len(boards.boards):
        raise BenchError(f"no answer over all boards: {line[-300:]}\n{boards.logs()}")
    return seconds, whole_s, report


def _kept(boards: Cluster, index: int) -> int:
    """The worker that a board keeps, once the session before is over."""
    board = boards.boards[index]
    _await(lambda: worker_of(board) is not None)
    found = worker_of(board)
    assert found is not None
    return found


def _await(look: Any) -> None:
    deadline = time.monotonic() + GONE_S
    while not look():
        if time.monotonic() > deadline:
            raise BenchError("the workers are not as they should be after a session")
        time.sleep(0.05)
