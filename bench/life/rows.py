"""Lives side by side, and the rows of the bench `weeks` that they give."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench.life.boards import LifeBoards, life_boards
from bench.life.desk.session import N_CTX, OPEN_S, OPTIONS
from bench.life.driver import Life
from bench.life.faults.events import BRIEF, SPARED, Bounds, life
from bench.life.faults.preload import compiled
from bench.life.verdict.judge import answered_part, first_token_ratio, same_part
from bench.life.verdict.reference import Reference
from bench.life.verdict.remains import all_bad_words, left_behind, segments
from bench.life.verdict.watch import Watch, growths
from bench.mesh_models import MeshModels
from bench.report import Measured

BRIEF_MINUTES = 15.0  # shorter lives have shorter waits, so that much happens in them
SPARED_EVENTS = 20  # half an hour, about
MB = 1 << 20
MORE_DESCRIPTORS = 4  # of a daemon that is idle again: another peer's connection may be under way
SHORT_S, LONG_S, CALM_ROUNDS = 10.0, 600.0, 5


@dataclass(frozen=True)
class Settings:
    """What the command line asked for."""

    models: MeshModels
    minutes: float
    seeds: tuple[int, ...]
    keep: Path | None
    is_random: bool
    tell: Callable[[str], None]

    def pack(self) -> Path:
        """The model that is asked."""
        return self.models.random_smollm2() if self.is_random else self.models.smollm2()


@dataclass(frozen=True)
class Lived:
    """A life that is over: its own account, growth by process, what it left, what it said."""

    seed: int
    life: Life
    growths: list[tuple[str, int]]
    leaks: list[str]
    bad_words: list[str]


def lives(settings: Settings, rounds: int) -> list[Measured]:
    """The rows of all seeds' lives, which run side by side."""
    settings.pack()  # made once, if it must be
    with ThreadPoolExecutor(len(settings.seeds)) as pool:
        return rows(list(pool.map(lambda seed: lived(settings, seed), settings.seeds)))


def bounds_of(minutes: float) -> Bounds:
    """How long things last in a life of so many minutes."""
    return BRIEF if minutes < BRIEF_MINUTES else Bounds(spared=SPARED_EVENTS)


def lived(settings: Settings, seed: int) -> Lived:
    """One life."""
    pack, folder = settings.pack(), settings.models.folder
    bounds, before = bounds_of(settings.minutes), segments()

    def tell(line: str) -> None:
        settings.tell(f"{seed}: {line}")

    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        library = compiled("life/faults/faults.c", Path(scratch))
        with (
            life_boards(pack, folder, bounds.boards, library) as boards,
            closing(Reference(pack, N_CTX, Path(scratch))) as reference,
        ):
            one, watch = Life(boards, reference, pack.stem, tell), Watch(boards.all)
            spared = _descriptors_after_an_answer(boards, pack.stem)
            try:
                with boards.units():
                    one.live(life(seed, bounds), time.monotonic() + 60 * settings.minutes)
                leaks = _end(one, boards, spared) + left_behind(boards.all, before)
            finally:
                watch.stop()
                one.session.close()
                if settings.keep is not None:
                    one.keep(settings.keep / f"seed{seed}")
            grown = growths(list(watch.processes.values()))
            return Lived(seed, one, grown, leaks, all_bad_words(one.said()))


def _descriptors_after_an_answer(boards: LifeBoards, pack: str) -> int:
    """Of the longest-lived daemon, once it has had a worker, and keeps it for the next session."""
    boards[0].type("chat", pack, "--cluster", *OPTIONS, "-p", "Hello", timeout_s=OPEN_S)
    time.sleep(1.0)
    return boards[SPARED].descriptors()


def _end(one: Life, boards: LifeBoards, spared: int) -> list[str]:
    """Leave the chat, end the daemons; descriptors that the longest-lived one has left open."""
    if one.session.is_open:
        one.session.leave()
    time.sleep(1.0)  # links of the chat end
    now = boards[SPARED].descriptors()
    leaks = [f"descriptors of a daemon: {spared}, then {now}"]
    for code in boards.stop():
        if code != 0:
            one.fault(f"a daemon ended with {code}")
    return leaks if now > spared + MORE_DESCRIPTORS else []


def rows(all_of: Sequence[Lived]) -> list[Measured]:
    """The figures of lives: all questions together, the worst of the rest."""
    asked = [one for each in all_of for one in each.life.asked]
    strengths = tuple(seconds for each in all_of for _, seconds in each.life.strengths)
    ratios = [first_token_ratio(each.life.asked) for each in all_of]
    leaks = [leak for each in all_of for leak in each.leaks]
    bad = [words for each in all_of for words in each.bad_words]
    raw = {str(each.seed): each.life.to_json() for each in all_of}
    parts = tuple(answered_part(each.life.asked) for each in all_of)
    measured = [
        Measured(
            "weeks_answers", answered_part(asked), parts, raw,
            f"{len(asked)} questions of {len(strengths)} events",
        ),
        Measured("weeks_same_text", same_part(asked), ()),
        Measured("weeks_full_strength_s", max(strengths), strengths),
        Measured(
            "weeks_first_token_ratio", max(r for r, _ in ratios), tuple(r for r, _ in ratios), {},
            f"worst ÷ median {max(w for _, w in ratios):.2f}",
        ),
        Measured("weeks_leaks", len(leaks), (), {"leaks": leaks}, "; ".join(leaks)),
        Measured("weeks_tracebacks", len(bad), (), {"bad": bad}, "; ".join(bad)[:500]),
    ]  # fmt: skip
    return measured + _growth(all_of)


def _growth(all_of: Sequence[Lived]) -> list[Measured]:
    """None where no process has lived long enough."""
    grown = sorted(
        ((each.seed, name, n / MB) for each in all_of for name, n in each.growths),
        key=lambda one: -one[2],
    )
    if not grown:
        return []
    seed, name, worst = grown[0]
    note = f"{len(grown)} processes; the worst: {name}, seed {seed}"
    values = tuple(mb for _, _, mb in grown)
    return [Measured("weeks_growth_mb", worst, values, {"growths": grown}, note)]


def idle_10min(settings: Settings, rounds: int) -> list[Measured]:
    """First-token time after ten idle minutes ÷ after ten seconds."""
    pack, folder = settings.pack(), settings.models.folder
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        library = compiled("life/faults/faults.c", Path(scratch))
        with (
            life_boards(pack, folder, Bounds().boards, library) as boards,
            closing(Reference(pack, N_CTX, Path(scratch))) as reference,
        ):
            one = Life(boards, reference, pack.stem, settings.tell)
            with closing(one.session):
                one.await_strength()
                short = [_after(one, SHORT_S) for _ in range(CALM_ROUNDS)]
                long = [_after(one, LONG_S) for _ in range(rounds)]
                short += [_after(one, SHORT_S) for _ in range(CALM_ROUNDS)]
    ratios = tuple(seconds / statistics.median(short) for seconds in long)
    raw = {"short_s": short, "long_s": long, "faults": one.faults}
    return [Measured("idle_10min", statistics.median(ratios), ratios, raw)]


def _after(one: Life, idle_s: float) -> float:
    time.sleep(idle_s)
    asked = one.ask("calm", calm=True)
    return float("inf") if asked is None or asked.first_s is None else asked.first_s
