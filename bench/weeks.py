"""`python -m bench weeks`: a seeded life happens to boards, and each question gets its answer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import mesh_models, suite
from bench.life.rows import Settings, idle_10min, lives
from bench.power.cuts import power_cut
from bench.suite import Groups, Suite, Target

TARGETS = {
    "weeks_answers": Target(">= 1", None),
    "weeks_same_text": Target(">= 1", None),
    "weeks_full_strength_s": Target("<= 60", 20),
    "weeks_first_token_ratio": Target("<= 3", 1.5),
    "weeks_growth_mb": Target("<= 3", 1),
    "weeks_leaks": Target("== 0", None),
    "weeks_tracebacks": Target("== 0", None),
    "idle_10min": Target("<= 1.2", 1.0),
    "power_cut": Target("== 30", None),
}

GROUPS: Groups = (
    (tuple(name for name in TARGETS if name.startswith("weeks_")), lives),
    (("idle_10min",), idle_10min),
    (("power_cut",), power_cut),
)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _add_options(parser: argparse.ArgumentParser) -> None:
    mesh_models.add_options(parser)
    parser.add_argument(
        "--minutes", type=float, default=5.0,
        help="of a life; in the last 25 nothing ends its hub, for growth [default: %(default)s]",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, action="append", metavar="S",
        help="of a life; several live side by side [default: 1]",
    )  # fmt: skip
    parser.add_argument(
        "--random", action="store_true", help="a model of random weights: nothing is fetched"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep there what terminals and daemons said"
    )


@contextmanager
def _prepared(options: argparse.Namespace) -> Iterator[Settings]:
    seeds = tuple(options.seed or [1])
    with mesh_models.prepared(options) as models:
        yield Settings(models, options.minutes, seeds, options.keep, options.random, _tell)


def main(argv: Sequence[str]) -> int:
    """0: everything measured; 1: a measurement failed; 2: usage; 3: something is missing."""
    about = __doc__ or ""
    return suite.run(Suite("weeks", about, TARGETS, GROUPS, _add_options, _prepared, 1), argv)
