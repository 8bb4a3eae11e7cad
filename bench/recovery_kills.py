"""Workers killed in the middle of an answer: how soon that is known, and what the text becomes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from bench.children import BenchError
from bench.mesh_cluster import cluster
from bench.mesh_models import MeshModels
from bench.recovery_answers import KIND, Answers, Told, worker_of
from bench.report import Measured
from hw.lab import Board

KILLS_A_ROUND, MOST_TRIES = 4, 3


def kills(models: MeshModels, rounds: int) -> list[Measured]:
    """Worst seconds from SIGKILL to the hub's notice; answers equal to the undisturbed one."""
    seen: list[dict[str, Any]] = []
    with cluster(KIND, models.smollm2(), models.folder) as boards:
        answers = Answers(boards)
        for _ in range(MOST_TRIES * KILLS_A_ROUND * rounds):
            if len(seen) == KILLS_A_ROUND * rounds:
                break
            board = boards.boards[1 + len(seen) % (len(boards.boards) - 1)]
            struck: list[int] = []
            told = answers.answer(killing(board, struck))
            if struck and told.is_struck_midway:  # else it had ended, or not begun: another one
                seen.append(outcome(answers, told, board))
        models.keep("kills", boards.peaks())
    if not seen:
        raise BenchError("no worker was killed while an answer was under way")
    detected = tuple(each["detect_s"] for each in seen)
    same = tuple(float(each["same"]) for each in seen)
    note = f"{int(sum(same))} of {len(same)}"
    return [
        Measured("kill_detect_s", max(detected), detected, {"kills": seen}, "seconds, the worst"),
        Measured("kill_same_text", sum(same), same, {}, note),
    ]


def killing(board: Board, struck: list[int]) -> Callable[[], None]:
    """Kills the board's worker, whose process is put into `struck`."""

    def kill() -> None:
        pid = worker_of(board)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            struck.append(pid)

    return kill


def outcome(answers: Answers, told: Told, board: Board) -> dict[str, Any]:
    """What came of one kill. Raises BenchError where the hub noticed nothing."""
    losses = [loss for loss in told.losses if loss["board"] == board.name]
    if not losses:
        raise BenchError(f"{board.name} was killed, and no loss told: {told.losses}")
    return {
        "board": board.name,
        "detect_s": float(losses[0]["time"]) - told.blow,
        "why": losses[0]["why"],
        "same": answers.is_same(told),
        "answer_s": told.ended - told.worker_seen,
        "undisturbed_s": answers.calm.ended - answers.calm.worker_seen,
    }
