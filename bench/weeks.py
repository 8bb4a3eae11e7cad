"""`python -m bench weeks`: a seeded life happens to boards, and each question gets its answer."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import mesh_models, suite
from bench.life.boards import life_boards
from bench.life.driver import Life
from bench.life.events import BRIEF, Bounds, life
from bench.life.judge import answered_part, first_token_ratio, same_part
from bench.life.preload import compiled
from bench.life.reference import Reference
from bench.life.session import N_CTX
from bench.mesh_models import MeshModels
from bench.report import Measured
from bench.suite import Groups, Suite, Target

BRIEF_MINUTES = 15.0  # shorter lives have shorter waits, so that much happens in them

TARGETS = {
    "weeks_answers": Target(">= 1", None),
    "weeks_same_text": Target(">= 1", None),
    "weeks_full_strength_s": Target("<= 60", 20),
    "weeks_first_token_ratio": Target("<= 3", 1.5),
}


@dataclass(frozen=True)
class Settings:
    """What the command line asked for."""

    models: MeshModels
    minutes: float
    seed: int
    keep: Path | None


def lived(settings: Settings, rounds: int) -> list[Measured]:
    """One life, and the rows that it gives."""
    pack, folder = settings.models.smollm2(), settings.models.folder
    bounds = BRIEF if settings.minutes < BRIEF_MINUTES else Bounds()
    with (
        tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch,
        life_boards(pack, folder, bounds.boards, compiled("faults", Path(scratch))) as boards,
    ):
        reference = Reference(pack, N_CTX, Path(scratch))
        one = Life(boards, reference, pack.stem, _tell)
        try:
            one.live(life(settings.seed, bounds), time.monotonic() + 60 * settings.minutes)
        finally:
            if settings.keep is not None:
                one.keep(settings.keep / f"seed{settings.seed}")
            one.session.close()
            reference.close()
    return rows(one)


def rows(one: Life) -> list[Measured]:
    """The figures of a life."""
    asked, raw = one.asked, one.to_json()
    ratio, worst = first_token_ratio(asked)
    strengths = tuple(seconds for _, seconds in one.strengths)
    return [
        Measured("weeks_answers", answered_part(asked), (), raw, f"{len(asked)} questions"),
        Measured("weeks_same_text", same_part(asked), ()),
        Measured("weeks_full_strength_s", max(strengths, default=math.nan), strengths),
        Measured("weeks_first_token_ratio", ratio, (), {}, f"worst ÷ median {worst:.2f}"),
    ]


GROUPS: Groups = ((tuple(TARGETS), lived),)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _add_options(parser: argparse.ArgumentParser) -> None:
    mesh_models.add_options(parser)
    parser.add_argument("--minutes", type=float, default=5.0, help="[default: %(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="of the life [default: %(default)s]")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep there what terminals and daemons said"
    )


@contextmanager
def _prepared(options: argparse.Namespace) -> Iterator[Settings]:
    with mesh_models.prepared(options) as models:
        yield Settings(models, options.minutes, options.seed, options.keep)


def main(argv: Sequence[str]) -> int:
    """0: everything measured; 1: a measurement failed; 2: usage; 3: something is missing."""
    about = __doc__ or ""
    return suite.run(Suite("weeks", about, TARGETS, GROUPS, _add_options, _prepared, 1), argv)
