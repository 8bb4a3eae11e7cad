"""`python -m bench window`: models larger than memory, beside llama.cpp and Accelerate."""

from __future__ import annotations

from collections.abc import Sequence

from bench import suite, window_models
from bench.suite import Groups, Suite, Target
from bench.window_budget import bytes_per_token, kept, plan_error, short, whole_model
from bench.window_rates import stream_rate
from bench.window_speed import against_accelerate, against_llama

LLAMA = ("llama_cpp",)
ACCELERATE = ("torch", "transformers", "accelerate")

TARGETS = {
    "limit60_100mbs": Target(">= 2.0", 2.15, LLAMA),
    "limit60_500mbs": Target(">= 2.0", 2.15, LLAMA),
    "limit25_100mbs": Target(">= 1.15", 1.25, LLAMA),
    "limit25_500mbs": Target(">= 1.15", 1.25, LLAMA),
    "accelerate": Target(">= 10", 25, ACCELERATE),
    "resident_mb_short": Target("<= 110", 75),
    "bytes_per_token": Target("<= 1.02", 1.0),
    "stream_rate": Target(">= 0.60", 0.9),
    "stream_rate_throttled": Target(">= 0.95", 0.99),
    "budget_kept": Target("<= 1.0", None),
    "plan_error": Target("0.85-1.15", None),
    "whole_model_budget": Target("<= 1.03", 1.0),
}

# What one measurement answers, in the order they run: rows on plans use the runs before them.
GROUPS: Groups = (
    (("limit60_100mbs",), against_llama("limit60_100mbs", 0.60, 100)),
    (("limit60_500mbs",), against_llama("limit60_500mbs", 0.60, 500)),
    (("limit25_100mbs",), against_llama("limit25_100mbs", 0.25, 100)),
    (("limit25_500mbs",), against_llama("limit25_500mbs", 0.25, 500)),
    (("resident_mb_short",), short),
    (("plan_error",), plan_error),
    (("bytes_per_token",), bytes_per_token),
    (("budget_kept",), kept),
    (("whole_model_budget",), whole_model),
    (("stream_rate",), stream_rate("stream_rate", None)),
    (("stream_rate_throttled",), stream_rate("stream_rate_throttled", 500)),
    (("accelerate",), against_accelerate),
)


def main(argv: Sequence[str]) -> int:
    """0: everything measured; 1: a measurement failed; 2: usage; 3: something is missing."""
    about = __doc__ or ""
    add, prepare = window_models.add_options, window_models.prepared
    return suite.run(Suite("window", about, TARGETS, GROUPS, add, prepare, rounds=3), argv)
