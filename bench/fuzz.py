"""`python -m bench fuzz`: inputs tried on every parser, what they broke, and what they reached."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import suite
from bench.children import BenchError
from bench.report import Measured
from bench.suite import Groups, Suite, Target

TARGETS = {
    "fuzz_inputs": Target(">= 1000000", 10_000_000),
    "fuzz_faults": Target("== 0", None),
    "fuzz_coverage": Target(">= 0.9", None),
}


@dataclass(frozen=True)
class Settings:
    """What the command line asked for."""

    inputs: int
    covering: int
    seed: int
    found: Path


def tried(settings: Settings, rounds: int) -> list[Measured]:
    """One run of all fuzzers; the coverage is that of the parser reached worst."""
    command = [sys.executable, "-m", "fuzz", "--json", "--jobs", str(os.cpu_count() or 1)]
    command += ["--inputs", str(settings.inputs), "--coverage", str(settings.covering)]
    command += ["--seed", str(settings.seed), "--found", str(settings.found)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode not in (0, 1) or not done.stdout:
        raise BenchError(f"python -m fuzz ended with {done.returncode}")
    raw = json.loads(done.stdout.splitlines()[-1])
    covered = [
        (share, module) for each in raw["covered"].values() for module, share in each.items()
    ]
    best = {module: max(s for s, m in covered if m == module) for _, module in covered}
    worst = min(best, key=lambda module: best[module])
    return [
        Measured("fuzz_inputs", raw["fuzz_inputs"], (), raw, f"seed {raw['seed']}"),
        Measured("fuzz_faults", raw["fuzz_faults"], ()),
        Measured("fuzz_coverage", best[worst], (), {"covered": best}, f"the least: {worst}"),
    ]


GROUPS: Groups = ((tuple(TARGETS), tried),)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inputs", type=int, default=1_000_000, help="[default: %(default)s]")
    parser.add_argument(
        "--covering", type=int, default=3000, help="inputs whose lines count [default: %(default)s]"
    )
    parser.add_argument("--seed", type=int, default=1, help="[default: %(default)s]")
    parser.add_argument(
        "--found", type=Path, default=Path("fuzz-found"), help="a folder for inputs that are faults"
    )


@contextmanager
def _prepared(options: argparse.Namespace) -> Iterator[Settings]:
    yield Settings(options.inputs, options.covering, options.seed, options.found)


def main(argv: Sequence[str]) -> int:
    """0: everything measured; 1: a measurement failed; 2: usage."""
    about = __doc__ or ""
    return suite.run(Suite("fuzz", about, TARGETS, GROUPS, _add_options, _prepared, 1), argv)
