"""`python -m bench seventy_b`: a model of 70 billion weights on one board, and on one of eight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import paced, suite, window_models
from bench.children import BenchError
from bench.limits import Limits
from bench.paced import Paced
from bench.random_models import LLAMA_70B
from bench.report import Measured
from bench.suite import Groups, Suite, Target
from bench.window_models import WindowModels

GB = 10**9
N_CTX, LAST_TOKENS = 2048, 3
ONE_BOARD, ONE_OF_EIGHT = 600 * 10**6, 250 * 10**6  # budgets
EIGHTH = (1, 14)  # of 8 attention shards and 112 FFN shards
PACE, CLOCK_TOKENS = 500 * 10**6, 3

TARGETS = {
    "seventy_b_one_board_gb": Target("<= 1.2", 0.8),
    "seventy_b_eighth_gb": Target("<= 0.6", 0.35),
    "seventy_b_clock": Target("<= 1.15", 1.03),
}


def layers_note(pack: Path) -> str:
    """How much of the shape the disk had room for."""
    return f"{window_models.layers_of(pack)} of {LLAMA_70B.num_hidden_layers} layers"


def filled_note(answer: dict[str, Any]) -> str:
    """What was done before the peak was read."""
    return (
        f"cache written from end to end, {answer['prompt_tokens']} tokens of prompt and "
        f"{len(answer['seconds'])} tokens decoded at the end of the context"
    )


def one_board(models: WindowModels, rounds: int) -> list[Measured]:
    """Peak of a board that has all of it, its context full: embedding, layers, head."""
    return [_peak(models, "seventy_b_one_board_gb", ONE_BOARD, None)]


def one_of_eight(models: WindowModels, rounds: int) -> list[Measured]:
    """Peak of a board that has an eighth of every layer, its context full."""
    return [_peak(models, "seventy_b_eighth_gb", ONE_OF_EIGHT, EIGHTH)]


def _peak(models: WindowModels, name: str, budget: int, part: tuple[int, int] | None) -> Measured:
    pack = models.seventy_b()
    request: dict[str, Any] = {
        "path": str(pack), "memory": budget, "n_ctx": N_CTX, "n": LAST_TOKENS, "slice": part,
        "threads": paced.THREADS,
    }  # fmt: skip
    # Twice the budget: a peak that the limit cut off would be no measurement.
    run = paced.worker("ours_filled", pack, Limits(2 * budget), request)
    note = (
        f"GB, of a budget of {budget / GB:g}; {run.s_per_token:.2f} s/token; {layers_note(pack)}; "
        f"{filled_note(run.report)}"
    )
    value = run.peak_bytes / GB
    return Measured(name, value, (value,), run.raw(), note)


def clock(models: WindowModels, rounds: int) -> list[Measured]:
    """s/token ÷ (streamed bytes ÷ 500 MB/s)."""
    pack = models.seventy_b()
    limit = Limits(2 * ONE_BOARD, PACE)
    run = paced.ours(pack, limit, CLOCK_TOKENS, "--memory", str(ONE_BOARD), "--kv-bits", "8")
    value = against_clock(run)
    note = f"{run.s_per_token:.2f} s/token; {layers_note(pack)}"
    return [Measured("seventy_b_clock", value, (value,), run.raw(), note)]


def against_clock(run: Paced) -> float:
    """Seconds a token ÷ those that the disk alone takes."""
    plan = run.report["plan"]
    if not plan["streamed_bytes_per_token"]:
        raise BenchError("nothing was streamed")
    return float(run.s_per_token / (plan["streamed_bytes_per_token"] / PACE))


GROUPS: Groups = (
    (("seventy_b_one_board_gb",), one_board),
    (("seventy_b_eighth_gb",), one_of_eight),
    (("seventy_b_clock",), clock),
)


def main(argv: Sequence[str]) -> int:
    """0: everything measured; 1: a measurement failed; 2: usage; 3: something is missing."""
    about = __doc__ or ""
    add, prepare = window_models.add_options, window_models.prepared
    return suite.run(Suite("seventy_b", about, TARGETS, GROUPS, add, prepare, rounds=1), argv)
