"""Boards that stand still: stopped ones are given up, slow ones are not."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Timer
from typing import Any

from bench.children import BenchError
from bench.mesh_cluster import Cluster, Kind, cluster
from bench.mesh_models import MeshModels
from bench.mesh_speed import model_bytes
from bench.paced import PROMPT
from bench.recovery_answers import KIND, Answers, Told
from bench.report import Measured
from hw.lab import Board

TIMES_A_ROUND, MOST_TRIES = 2, 3
STUCK_S, STUCK_BYTES_PER_S = 5.0, 4096
TENTH, FEW = 0.1, 48  # of a CPU; tokens of an answer, as most of it is slow
NOTICED_S = 5.0  # a stopped board is given up by then


def stalls(models: MeshModels, rounds: int) -> list[Measured]:
    """Of boards stopped, stuck in a read and throttled, how many were rightly treated."""
    times, seen = TIMES_A_ROUND * rounds, list[dict[str, Any]]()
    with cluster(KIND, models.smollm2(), models.folder) as boards:
        answers = Answers(boards)
        seen += attempts(answers, "stopped", stopped, times)
        answers = Answers(boards, tokens=FEW)
        seen += attempts(answers, "throttled", throttled, times)
        models.keep("stalls", boards.peaks())
    with cluster(streaming(models), models.pack(), models.folder) as boards:
        answers = Answers(boards, PROMPT, 24)
        seen += attempts(answers, "stuck", stuck, times)
        models.keep("stuck", boards.peaks())
    right = tuple(float(each["right"]) for each in seen)
    kinds = {kind: [e["right"] for e in seen if e["kind"] == kind] for kind in KINDS}
    note = ", ".join(f"{kind} {sum(found)} of {len(found)}" for kind, found in kinds.items())
    return [Measured("stall_told_apart", sum(right), right, {"stalls": seen}, note)]


KINDS = ("stopped", "throttled", "stuck")


def streaming(models: MeshModels) -> Kind:
    """Two boards that read some of their slices anew for every token."""
    return Kind(2, (int(model_bytes(models) * 0.4),), n_ctx=256)


def attempts(
    answers: Answers, kind: str, blow: Callable[[Board], Callable[[], None]], times: int
) -> list[dict[str, Any]]:
    """So many answers that were under way when the board stood still. Raises BenchError."""
    seen: list[dict[str, Any]] = []
    for _ in range(MOST_TRIES * times):
        if len(seen) == times:
            return seen
        verdict = attempt(answers, kind, blow)
        if verdict["hit"]:
            seen.append(verdict)
    if len(seen) < times:
        raise BenchError(f"only {len(seen)} of {times} boards were {kind} in mid-answer")
    return seen


def attempt(
    answers: Answers, kind: str, blow: Callable[[Board], Callable[[], None]]
) -> dict[str, Any]:
    """One answer, and whether its board was rightly treated."""
    board = answers.boards.boards[-1]
    undo: list[Callable[[], None]] = []

    def strike() -> None:
        undo.append(blow(board))

    try:
        told = answers.answer(strike)
        verdict = judge(kind, told, answers.is_same(told), board.name)
        verdict["hit"] = told.is_struck_midway and stood_still(kind, told, answers.calm)
    except BenchError as error:
        verdict = {"kind": kind, "right": False, "hit": True, "why": str(error)[-600:]}
    finally:
        for each in undo:
            each()
    settle(answers.boards)
    return verdict


def stood_still(kind: str, told: Told, calm: Told) -> bool:
    """Whether a board stuck in a read held its answer up: it may have read all it needed."""
    return kind != "stuck" or told.decode_s > calm.decode_s + STUCK_S / 2


def judge(kind: str, told: Told, same: bool, board: str) -> dict[str, Any]:
    """A stopped board alone is lost, soon; a slow board is waited for."""
    losses = [loss for loss in told.losses if loss["board"] == board]
    if kind == "stopped":
        detect_s = float(losses[0]["time"]) - told.blow if losses else None
        treated = detect_s is not None and 0 <= detect_s <= NOTICED_S
    else:
        detect_s, treated = None, not told.losses
    return {
        "kind": kind, "right": treated and same, "same": same, "losses": told.losses,
        "detect_s": detect_s, "answer_s": told.ended - told.worker_seen,
    }  # fmt: skip


def settle(boards: Cluster) -> None:
    """All boards are seen again. Raises BenchError."""
    boards.await_all()


def stopped(board: Board) -> Callable[[], None]:
    """SIGSTOP to all of it, its daemon too."""
    board.stop()
    return board.resume


def throttled(board: Board) -> Callable[[], None]:
    """A tenth of a CPU, until the answer is there."""
    board.limit(cpu=TENTH)
    return lambda: board.unlimit(cpu=True)


def stuck(board: Board) -> Callable[[], None]:
    """Its disk gives nearly nothing for five seconds."""
    board.limit(disk_bytes_per_s=STUCK_BYTES_PER_S)
    began = time.monotonic()
    timer = Timer(STUCK_S, lambda: board.unlimit(disk=True))
    timer.start()

    def undo() -> None:
        timer.join(max(0.0, STUCK_S + 5 - (time.monotonic() - began)))

    return undo
