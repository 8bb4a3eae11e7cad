"""`python -m bench simulator`: random histories of boards that agree, and each rule taken away."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench import suite
from bench.children import ROOT, BenchError
from bench.report import Measured
from bench.suite import Groups, Suite, Target

TARGETS = {
    "simulator": Target(">= 5000", 100_000),
    "mutants": Target("== 0", None),
}
SUPPORT = ROOT / "tests" / "support"
CHUNK = 100  # seeds of one process


@dataclass(frozen=True)
class Settings:
    """What the command line asked for."""

    seeds: int
    first: int
    jobs: int


def _child(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(SUPPORT)])
    return subprocess.run(
        [sys.executable, str(SUPPORT / script), *args, "--json"],
        stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def _told(script: str, *args: str) -> Any:
    """What a script of the tests says in its last line."""
    done = _child(script, *args)
    if done.returncode not in (0, 1) or not done.stdout:
        raise BenchError(f"{script} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def histories(settings: Settings, rounds: int) -> list[Measured]:
    """Seeds in their order until the first that ends in a violation or a stall."""
    ends = range(settings.first, settings.first + settings.seeds, CHUNK)
    last = settings.first + settings.seeds
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(settings.jobs) as pool:
        chunks = pool.map(
            lambda first: _told("consensus_seeds.py", str(first), str(min(first + CHUNK, last))),
            ends,
        )
        failed: list[int] = []
        for chunk in chunks:
            counts.update(chunk["counts"])
            failed += chunk["failed"]
    clean = min(failed) - settings.first if failed else settings.seeds
    raw = {"failed": failed, "counts": dict(sorted(counts.items())), "first": settings.first}
    note = f"{counts['steps']} steps, {counts['configurations']} configurations"
    return [Measured("simulator", clean, (), raw, note)]


def mutants(settings: Settings, rounds: int) -> list[Measured]:
    """Rules without which no history goes wrong, of those that are said to be needed."""
    raw = _told("consensus_mutants.py", "--caught")
    missed = [name for name, caught in raw.items() if not caught]
    return [Measured("mutants", len(missed), (), raw, f"of {len(raw)}")]


GROUPS: Groups = ((("simulator",), histories), (("mutants",), mutants))


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=5000, help="[default: %(default)s]")
    parser.add_argument("--first", type=int, default=0, help="[default: %(default)s]")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)


@contextmanager
def _prepared(options: argparse.Namespace) -> Iterator[Settings]:
    yield Settings(options.seeds, options.first, max(1, options.jobs))


def main(argv: Sequence[str]) -> int:
    """0: everything measured; 1: a measurement failed; 2: usage."""
    about = __doc__ or ""
    return suite.run(Suite("simulator", about, TARGETS, GROUPS, _add_options, _prepared, 1), argv)
