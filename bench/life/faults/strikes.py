"""How each event is done to real processes, links and cards, and undone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from bench.life.boards import LINK
from bench.life.faults.events import DAEMON, HUB, Event
from bench.life.faults.preload import YEAR_S
from hw.lab import LinkShape

if TYPE_CHECKING:
    from bench.life.driver import Life

Undo = Callable[[], None]
SLOW_BYTES_PER_S = 600_000
OOM_S = 60.0


def strike(event: Event, life: Life) -> Undo:
    """Do it now; what it returns makes everything well again."""
    return STRIKES[event.kind](event, life)


def nothing() -> None:
    """For what needs no undoing."""


def _idle(event: Event, life: Life) -> Undo:
    return nothing


def _victim(event: Event, life: Life) -> int | None:
    board = life.boards[event.board]
    if event.victim == HUB:
        return life.session.chat.process.pid
    if event.victim == DAEMON:
        return None if board.daemon is None else board.daemon.pid
    return board.worker()


def _signal(pid: int | None, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        if pid is not None:
            os.kill(pid, number)


def _kill(event: Event, life: Life) -> Undo:
    _signal(_victim(event, life), signal.SIGKILL)
    return nothing


def _stop(event: Event, life: Life) -> Undo:
    pid = _victim(event, life)
    _signal(pid, signal.SIGSTOP)
    return lambda: _signal(pid, signal.SIGCONT)


def _hang_up(event: Event, life: Life) -> Undo:
    _signal(_victim(event, life), signal.SIGHUP)
    return nothing


def _restart(event: Event, life: Life) -> Undo:
    board = life.boards[event.board]
    code = board.terminate()
    if code != 0:
        life.fault(f"the daemon ended with {code} when it was asked to")
    board.start()
    return nothing


def _oom(event: Event, life: Life) -> Undo:
    board = life.boards[event.board].board
    hog = [sys.executable, "-m", "bench.life.faults.hog", *map(str, board.pids())]
    board.run(hog, timeout_s=OOM_S)
    return nothing


def _reboot(event: Event, life: Life) -> Undo:
    life.boards.turn_off(event.board)
    return lambda: life.boards.turn_on(event.board)


def _cut_board(event: Event, life: Life) -> Undo:
    life.boards.cut(event.board)
    return lambda: life.boards.heal(event.board)


def _part(event: Event, life: Life) -> Undo:
    life.boards.part(event.board, event.other)
    return lambda: life.boards.join(event.board, event.other)


def _lose(event: Event, life: Life) -> Undo:
    port = life.boards[event.board].board.port
    port.shape(LinkShape(LINK.delay_s, jitter_s=event.jitter_s, loss=event.loss))
    return lambda: port.shape(LINK)


def _move(event: Event, life: Life) -> Undo:
    life.boards.move(event.board)
    return nothing


def _fill(event: Event, life: Life) -> Undo:
    faults = life.boards[event.board].faults
    faults.set_full(True)
    return lambda: faults.set_full(False)


def _slow(event: Event, life: Life) -> Undo:
    board = life.boards[event.board]
    board.limit_reading(SLOW_BYTES_PER_S)
    return board.limit_reading


def _clock(event: Event, life: Life) -> Undo:
    life.boards[event.board].faults.set_clock(int(event.years * YEAR_S))
    return nothing


def _interrupt(event: Event, life: Life) -> Undo:
    if event.midway is None:
        life.session.interrupt_idle()
    else:
        life.session.interrupt()
    return nothing


STRIKES: dict[str, Callable[[Event, Life], Undo]] = {
    "idle": _idle, "second": _idle, "kill": _kill, "stop": _stop, "hup": _hang_up,
    "restart": _restart, "oom": _oom,
    "reboot": _reboot, "cut": _cut_board, "part": _part, "lose": _lose, "move": _move,
    "fill": _fill, "slow": _slow, "clock": _clock, "interrupt": _interrupt,
}  # fmt: skip
