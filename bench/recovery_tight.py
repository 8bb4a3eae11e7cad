"""Workers killed on boards whose memory hardly holds the model: the text goes on all the same."""

from __future__ import annotations

from typing import Any

from bench.mesh_cluster import MIB, Kind, cluster
from bench.mesh_models import MeshModels
from bench.recovery_answers import KIND, Answers
from bench.recovery_kills import killing
from bench.report import Measured

BUDGETS_MB = (130, 140, 150)
KILLS_A_ROUND, MOST_TRIES = 4, 3  # at each budget


def tight_recovery(models: MeshModels, rounds: int) -> list[Measured]:
    """Answers equal to the undisturbed one, of a worker killed in each, at all budgets."""
    outcomes = {mb: _killed_at(models, mb, KILLS_A_ROUND * rounds) for mb in BUDGETS_MB}
    same = tuple(float(sum(told["same"] for told in each)) for each in outcomes.values())
    counts = zip(same, outcomes.items(), strict=True)
    note = ", ".join(f"{int(n)} of {len(each)} at {mb} MB" for n, (mb, each) in counts)
    return [Measured("tight_recovery", sum(same), same, {"kills": outcomes}, note)]


def _killed_at(models: MeshModels, budget_mb: int, kills: int) -> list[dict[str, Any]]:
    """What came of each kill on boards of that budget."""
    seen: list[dict[str, Any]] = []
    kind = Kind(KIND.boards, (budget_mb * MIB,), n_ctx=KIND.n_ctx)
    with cluster(kind, models.smollm2(), models.folder) as boards:
        answers = Answers(boards)
        for _ in range(MOST_TRIES * kills):
            if len(seen) == kills:
                break
            board = boards.boards[1 + len(seen) % (len(boards.boards) - 1)]
            struck: list[int] = []
            told = answers.answer(killing(board, struck))
            if struck and (told.losses or told.is_struck_midway):
                error = told.report.get("error")
                seen.append({"board": board.name, "same": answers.is_same(told), "error": error})
    return seen
