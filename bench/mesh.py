"""`python -m bench mesh`: many boards as one, in the lab, beside distributed-llama and TPI-LLM."""

from __future__ import annotations

from collections.abc import Sequence

from bench import mesh_models, suite
from bench.hostile_board import hostile_board
from bench.mesh_networks import apart, one_port
from bench.mesh_peers import distributed_llama, tpi_llm
from bench.mesh_speed import budget_kept, eight_boards, pooled_memory, two_boards, uneven
from bench.mesh_sums import sums_of_16kb
from bench.suite import Groups, Suite, Target

TARGETS = {
    "two_boards_decode": Target(">= 1.3", 1.6),
    "two_boards_prefill": Target(">= 1.5", 1.9),
    "vs_distributed_llama": Target(">= 1.5", 2.0),
    "vs_tpi_llm": Target(">= 5", 7.0),
    "star_16kb": Target("<= 1.5", 1.15),
    "exchange_16kb": Target("<= 1.5", 1.15),
    "uneven": Target(">= 1.25", 1.33),
    "pooled_memory": Target(">= 20", 60.0),
    "eight_boards_plan": Target("0.8-1.25", None),
    "apart_s": Target("<= 12", 5.0),
    "apart_boards": Target("== 3", None),
    "one_port_boards": Target("== 3", None),
    "one_port_ratio": Target(">= 0.5", 0.8),
    "hostile_board": Target("== 0", None),
    "hostile_board_mb": Target("<= 2", None),
    "budget_kept": Target("<= 1.0", None),
}

# What one measurement answers, in the order they run: the row on budgets uses the runs before it.
GROUPS: Groups = (
    (("two_boards_decode", "two_boards_prefill"), two_boards),
    (("vs_distributed_llama",), distributed_llama),
    (("vs_tpi_llm",), tpi_llm),
    (("star_16kb", "exchange_16kb"), sums_of_16kb),
    (("uneven",), uneven),
    (("pooled_memory",), pooled_memory),
    (("eight_boards_plan",), eight_boards),
    (("apart_s", "apart_boards"), apart),
    (("one_port_boards", "one_port_ratio"), one_port),
    (("hostile_board", "hostile_board_mb"), hostile_board),
    (("budget_kept",), budget_kept),
)


def main(argv: Sequence[str]) -> int:
    """0: everything measured; 1: a measurement failed; 2: usage; 3: something is missing."""
    about = __doc__ or ""
    add, prepare = mesh_models.add_options, mesh_models.prepared
    return suite.run(Suite("mesh", about, TARGETS, GROUPS, add, prepare, rounds=3), argv)
