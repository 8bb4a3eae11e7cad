"""How each event is done to real processes, links and cards, and undone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from bench.life.events import WORKER, Event

if TYPE_CHECKING:
    from bench.life.driver import Life

Undo = Callable[[], None]


def strike(event: Event, life: Life) -> Undo:
    """Do it now; what it returns makes everything well again."""
    return STRIKES[event.kind](event, life)


def nothing() -> None:
    """For what needs no undoing."""


def _idle(event: Event, life: Life) -> Undo:
    time.sleep(event.seconds)
    return nothing


def _kill(event: Event, life: Life) -> Undo:
    board = life.boards[event.board]
    pid = board.worker() if event.victim == WORKER else None
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return nothing


def _restart(event: Event, life: Life) -> Undo:
    board = life.boards[event.board]
    code = board.terminate()
    if code != 0:
        life.fault(f"the daemon ended with {code} when it was asked to")
    board.start()
    return nothing


def _cut_board(event: Event, life: Life) -> Undo:
    board = life.boards[event.board].board
    board.cut()
    return board.heal


STRIKES: dict[str, Callable[[Event, Life], Undo]] = {
    "idle": _idle,
    "kill": _kill,
    "restart": _restart,
    "cut": _cut_board,
}
