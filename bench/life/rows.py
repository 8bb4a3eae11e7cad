"""Lives side by side, and the rows of the bench `weeks` that they give."""

from __future__ import annotations

import random
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.children import BenchError, Unready
from bench.life.boards import LifeBoards, life_boards
from bench.life.desk.beside import Wanting
from bench.life.desk.session import N_CTX, OPEN_S, OPTIONS
from bench.life.driver import Life
from bench.life.faults.events import BRIEF, SPARED, Bounds, Event, life
from bench.life.faults.preload import compiled
from bench.life.figures import Lived, rows
from bench.life.verdict.holding import holding_of
from bench.life.verdict.neighbours import Neighbours
from bench.life.verdict.reference import Reference
from bench.life.verdict.remains import Spaces, left_on, segments, segments_left
from bench.life.verdict.said import all_bad_words
from bench.life.verdict.watch import Watch
from bench.mesh_models import MeshModels
from bench.report import Measured
from hw.lab import Lab, LabError

BRIEF_MINUTES = 15.0  # shorter lives have shorter waits, so that much happens in them
SPARED_MINUTES = 25.0  # the last ones of a life, in which nothing ends the hub: it is to grow old
MORE_DESCRIPTORS = 4  # of a daemon that is idle again: another peer's connection may be under way
BROKEN, MOST_CHARS = (BenchError, LabError, OSError, subprocess.SubprocessError), 500
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


def lives(settings: Settings, rounds: int) -> list[Measured]:
    """The rows of all seeds' lives, which run side by side."""
    settings.pack()  # made once, if it must be
    neighbours, labs = Neighbours(), list[Lab]()
    return rows(
        side_by_side(lambda seed: lived(settings, seed, neighbours, labs), settings.seeds, labs)
    )


def side_by_side(
    call: Callable[[int], Lived], seeds: Sequence[int], labs: Sequence[Lab]
) -> list[Lived]:
    """`call` of each seed, each in a thread.

    Ctrl-C waits for none of them: their `labs` are closed, which ends all that runs there.
    """
    made = [Future[Lived]() for _ in seeds]

    def live(future: Future[Lived], seed: int) -> None:
        try:
            future.set_result(call(seed))
        except BaseException as error:
            future.set_exception(error)

    try:
        for future, seed in zip(made, seeds, strict=True):
            threading.Thread(target=live, args=(future, seed), daemon=True).start()
        wait(made)
    except KeyboardInterrupt:
        threading.excepthook = lambda its: None  # what they find gone is no news
        for lab in labs:
            with suppress(*BROKEN):
                lab.close()
        raise
    return [future.result() for future in made]


def bounds_of(minutes: float) -> Bounds:
    """How long things last in a life of so many minutes."""
    return BRIEF if minutes < BRIEF_MINUTES else Bounds()


def lived(settings: Settings, seed: int, neighbours: Neighbours, labs: list[Lab]) -> Lived:
    """One life, whatever becomes of it: the others' are worth their time. Raises Unready."""
    try:
        return _lived(settings, seed, neighbours, labs)
    except Unready:
        raise
    except BROKEN as error:
        settings.tell(f"{seed}: broke off: {error!r}")
        return Lived(seed, broken=repr(error)[-MOST_CHARS:])


def _lived(settings: Settings, seed: int, neighbours: Neighbours, labs: list[Lab]) -> Lived:
    pack, folder = settings.pack(), settings.models.folder
    bounds, before = bounds_of(settings.minutes), segments()

    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        library = compiled("life/faults/faults.c", Path(scratch))
        with (
            life_boards(pack, folder, bounds.boards, library, labs) as boards,
            closing(Reference(pack, N_CTX, Path(scratch))) as reference,
        ):
            spaces = Spaces.of(boards.all)
            one = _life(settings, boards, reference, seed, neighbours)
            watch, spared = Watch(boards.all), _descriptors_after_an_answer(boards, pack.stem)
            try:
                with boards.units():
                    broken = _live(one, life(seed, bounds), 60 * settings.minutes)
                watch.stop()
                grown, leaks = watch.grown(), _end(one, boards, spared)
            finally:
                watch.stop()
                one.session.close()
                if settings.keep is not None:
                    one.keep(settings.keep / f"seed{seed}")
            bad = all_bad_words(one.said())
    leaks += segments_left(before) + spaces.left()
    return Lived(seed, one.asked, one.strengths, one.to_json(), grown, leaks, bad, broken)


def _life(
    settings: Settings, boards: LifeBoards, reference: Reference, seed: int, neighbours: Neighbours
) -> Life:
    pack = settings.pack()

    def tell(line: str) -> None:
        settings.tell(f"{seed}: {line}")

    return Life(
        boards, reference, holding_of(boards, pack, N_CTX), pack.stem, tell,
        Wanting(random.Random(seed)), neighbours, seed,
    )  # fmt: skip


def _live(one: Life, events: Iterator[Event], seconds: float) -> str:
    """Let it happen; why it was broken off, "" where it was not."""
    until = time.monotonic() + seconds
    is_long = seconds >= 60 * SPARED_MINUTES
    try:
        one.live(events, until, until - 60 * SPARED_MINUTES if is_long else until)
    except BROKEN as error:
        one.fault(f"the bench broke off: {error!r}")
        return repr(error)[-MOST_CHARS:]
    return ""


def _descriptors_after_an_answer(boards: LifeBoards, pack: str) -> int:
    """Of the longest-lived daemon, once it has had a worker, and keeps it for the next session."""
    boards[0].type("chat", pack, "--cluster", *OPTIONS, "-p", "Hello", timeout_s=OPEN_S)
    time.sleep(1.0)
    return boards[SPARED].descriptors()


def _end(one: Life, boards: LifeBoards, spared: int) -> list[str]:
    """Leave the chat, end the daemons; return their leftovers."""
    if one.session.is_open:
        one.session.leave()
    time.sleep(1.0)  # links of the chat end
    now = boards[SPARED].descriptors()
    leaks = [f"descriptors of a daemon: {spared}, then {now}"] * (now > spared + MORE_DESCRIPTORS)
    for code in boards.stop():
        if code != 0:
            one.fault(f"a daemon ended with {code}")
    return leaks + left_on(boards.all)


def idle_10min(settings: Settings, rounds: int) -> list[Measured]:
    """First-token time after ten idle minutes ÷ after ten seconds."""
    pack, folder = settings.pack(), settings.models.folder
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        library = compiled("life/faults/faults.c", Path(scratch))
        with (
            life_boards(pack, folder, Bounds().boards, library, []) as boards,
            closing(Reference(pack, N_CTX, Path(scratch))) as reference,
        ):
            one = _life(settings, boards, reference, settings.seeds[0], Neighbours())
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
