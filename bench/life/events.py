"""What happens to boards in weeks on a desk, as a sequence that a seed gives. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

HUB, DAEMON, WORKER = "hub", "daemon", "worker"
VICTIMS = (HUB, DAEMON, WORKER)


@dataclass(frozen=True)
class Event:
    """One thing that happens.

    `board` and `other` count from 0, the chat's board; `seconds` is how long it lasts; `midway`
    how long after a question it comes, None: while nobody asks.
    """

    kind: str
    board: int = 0
    other: int = 0
    victim: str = ""
    seconds: float = 0.0
    midway: float | None = None

    def __str__(self) -> str:
        parts = [self.kind, self.victim, f"b{self.board + 1}"]
        if self.other != self.board:
            parts.append(f"b{self.other + 1}")
        lasting = f"{self.seconds:.0f} s" * bool(self.seconds)
        moment = "" if self.midway is None else f"{self.midway:.2f} s into an answer"
        return " ".join(part for part in (*parts, lasting, moment) if part)


@dataclass(frozen=True)
class Bounds:
    """How long things last, in seconds; `spared_s`: for as long no hub is killed."""

    idle: tuple[float, float] = (60.0, 360.0)
    stop: tuple[float, float] = (5.0, 120.0)
    cut: tuple[float, float] = (5.0, 90.0)
    midway: tuple[float, float] = (0.05, 1.5)
    spared_s: float = 0.0
    boards: int = 3


BRIEF = Bounds(idle=(60.0, 90.0), stop=(5.0, 15.0), cut=(5.0, 15.0))

Make = Callable[[random.Random, Bounds], Event]


def _between(dice: random.Random, span: tuple[float, float]) -> float:
    return dice.uniform(*span)


def _moment(dice: random.Random, bounds: Bounds) -> float | None:
    """In an answer as often as not."""
    return _between(dice, bounds.midway) if dice.random() < 0.5 else None


def _idle(dice: random.Random, bounds: Bounds) -> Event:
    return Event("idle", seconds=_between(dice, bounds.idle))


def _kill_worker(dice: random.Random, bounds: Bounds) -> Event:
    board = dice.randrange(1, bounds.boards)
    return Event("kill", board, board, WORKER, midway=_moment(dice, bounds))


def _restart(dice: random.Random, bounds: Bounds) -> Event:
    board = dice.randrange(bounds.boards)
    return Event("restart", board, board, DAEMON, midway=_moment(dice, bounds))


def _cut_board(dice: random.Random, bounds: Bounds) -> Event:
    board = dice.randrange(1, bounds.boards)
    seconds = _between(dice, bounds.cut)
    return Event("cut", board, board, "", seconds, _moment(dice, bounds))


MAKERS: tuple[Make, ...] = (_idle, _kill_worker, _restart, _cut_board)


def life(seed: int, bounds: Bounds, makers: Sequence[Make] = MAKERS) -> Iterator[Event]:
    """Events without end: each kind comes once before any comes again."""
    dice = random.Random(seed)
    while True:
        deck = list(makers)
        dice.shuffle(deck)
        for make in deck:
            yield make(dice, bounds)
