"""What happens to boards in weeks on a desk, as a sequence that a seed gives. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

HUB, DAEMON, WORKER = "hub", "daemon", "worker"
CHAT, SPARED = 0, 2  # the chat's board; the board whose daemon is never killed


@dataclass(frozen=True)
class Event:
    """One thing that happens.

    `board` and `other` count from 0, the chat's board; `seconds` is how long it lasts; `midway`
    how long after a question it comes, None: between questions.
    """

    kind: str
    board: int = 0
    other: int = 0
    victim: str = ""
    seconds: float = 0.0
    midway: float | None = None
    years: float = 0.0
    loss: float = 0.0
    jitter_s: float = 0.0

    def __str__(self) -> str:
        parts = [self.kind, self.victim, f"b{self.board + 1}"]
        if self.other != self.board:
            parts.append(f"b{self.other + 1}")
        if self.seconds:
            parts.append(f"{self.seconds:.0f} s")
        if self.years:
            parts.append(f"{self.years:+.1f} years")
        if self.loss:
            parts.append(f"loss {self.loss:.1%}, jitter {self.jitter_s * 1e3:.1f} ms")
        if self.midway is not None:
            parts.append(f"{self.midway:.2f} s into an answer")
        return " ".join(part for part in parts if part)

    @property
    def ends_hub(self) -> bool:
        """Whether the chat's process ends by it: waiting commands then get the boards."""
        return (
            self.kind == "second"
            or (self.kind in ("kill", "hup") and self.victim == HUB)
            or (self.kind in ("reboot", "oom") and self.board == CHAT)
        )

    def ends_all_on(self, board: int) -> bool:
        """Whether any process of a board may end by it."""
        return self.kind in ("reboot", "oom") and self.board == board


@dataclass(frozen=True)
class Bounds:
    """How long things last, in seconds."""

    idle: tuple[float, float] = (60.0, 360.0)
    stop: tuple[float, float] = (5.0, 120.0)
    cut: tuple[float, float] = (5.0, 90.0)
    lasting: tuple[float, float] = (20.0, 90.0)
    midway: tuple[float, float] = (0.02, 1.5)
    years: tuple[float, float] = (-30.0, 12.0)
    off_s: float = 20.0
    boards: int = 3


BRIEF = Bounds(idle=(60.0, 75.0), stop=(5.0, 12.0), cut=(5.0, 12.0), lasting=(8.0, 15.0), off_s=8.0)


class Maker:
    """Draws events within bounds."""

    def __init__(self, dice: random.Random, bounds: Bounds) -> None:
        self._dice, self._bounds = dice, bounds

    def _moment(self) -> float | None:
        """In an answer as often as not."""
        return self._dice.uniform(*self._bounds.midway) if self._dice.random() < 0.5 else None

    def _worker_board(self) -> int:
        return self._dice.randrange(1, self._bounds.boards)

    def _any_board(self) -> int:
        return self._dice.randrange(self._bounds.boards)

    def _killable(self) -> int:
        return self._dice.choice([b for b in range(self._bounds.boards) if b != SPARED])

    def idle(self) -> Event:
        """A pause without typing."""
        return Event("idle", seconds=self._dice.uniform(*self._bounds.idle))

    def _stop(self, victim: str, board: int) -> Event:
        seconds = self._dice.uniform(*self._bounds.stop)
        return Event("stop", board, board, victim, seconds, self._moment())

    def stop_hub(self) -> Event:
        """SIGSTOP for a while, as of a laptop that sleeps."""
        return self._stop(HUB, CHAT)

    def stop_daemon(self) -> Event:
        """The same of a daemon."""
        return self._stop(DAEMON, self._any_board())

    def stop_worker(self) -> Event:
        """The same of a worker."""
        return self._stop(WORKER, self._worker_board())

    def _end(self, kind: str, victim: str, board: int) -> Event:
        return Event(kind, board, board, victim, midway=self._moment())

    def kill_hub(self) -> Event:
        """SIGKILL."""
        return self._end("kill", HUB, CHAT)

    def kill_daemon(self) -> Event:
        """SIGKILL; its unit starts it again."""
        return self._end("kill", DAEMON, self._killable())

    def kill_worker(self) -> Event:
        """SIGKILL."""
        return self._end("kill", WORKER, self._worker_board())

    def hang_up(self) -> Event:
        """SIGHUP to the chat: its ssh is gone."""
        return self._end("hup", HUB, CHAT)

    def hang_up_daemon(self) -> Event:
        """SIGHUP to a daemon."""
        return self._end("hup", DAEMON, self._killable())

    def restart(self) -> Event:
        """`systemctl restart`."""
        return self._end("restart", DAEMON, self._killable())

    def oom(self) -> Event:
        """The kernel kills a process for want of memory."""
        return self._end("oom", "", self._killable())

    def reboot(self) -> Event:
        """All processes of a board end; it is back after a while."""
        board, off_s = self._killable(), self._bounds.off_s
        return Event("reboot", board, board, "", off_s, self._moment())

    def cut_board(self) -> Event:
        """A board's cable is out."""
        board, seconds = self._worker_board(), self._dice.uniform(*self._bounds.cut)
        return Event("cut", board, board, "", seconds, self._moment())

    def cut_link(self) -> Event:
        """Two boards cannot reach each other, each of them reaches the third."""
        board, other = self._dice.sample(range(self._bounds.boards), 2)
        seconds = self._dice.uniform(*self._bounds.cut)
        return Event("part", board, other, "", seconds, self._moment())

    def lose(self) -> Event:
        """A bad radio link."""
        board, seconds = self._any_board(), self._dice.uniform(*self._bounds.lasting)
        return Event(
            "lose", board, board, "", seconds, self._moment(),
            loss=self._dice.uniform(0.005, 0.05), jitter_s=self._dice.uniform(0.0, 0.01),
        )  # fmt: skip

    def move(self) -> Event:
        """A board gets another address."""
        return self._end("move", "", self._any_board())

    def _lasting(self, kind: str, board: int) -> Event:
        seconds = self._dice.uniform(*self._bounds.lasting)
        return Event(kind, board, board, "", seconds, self._moment())

    def fill(self) -> Event:
        """A card is full for a while."""
        return self._lasting("fill", self._any_board())

    def slow_card(self) -> Event:
        """A card is slow for a while."""
        return self._lasting("slow", self._any_board())

    def step_clock(self) -> Event:
        """A clock is wrong by years, until its next step."""
        board, years = self._any_board(), self._dice.uniform(*self._bounds.years)
        return Event("clock", board, board, midway=self._moment(), years=years)

    def second_hub(self) -> Event:
        """A question from another board."""
        return Event("second", 1, 1)

    def interrupt(self) -> Event:
        """Ctrl-C in an answer."""
        return Event("interrupt", midway=self._dice.uniform(*self._bounds.midway))

    def interrupt_idle(self) -> Event:
        """Ctrl-C at the prompt."""
        return Event("interrupt")


Make = Callable[[Maker], Event]
MAKERS: tuple[Make, ...] = (
    Maker.idle, Maker.idle, Maker.stop_hub, Maker.stop_daemon, Maker.stop_worker, Maker.kill_hub,
    Maker.kill_daemon, Maker.kill_worker, Maker.hang_up, Maker.hang_up_daemon, Maker.restart,
    Maker.oom, Maker.reboot, Maker.cut_board, Maker.cut_link, Maker.lose, Maker.move, Maker.fill,
    Maker.slow_card, Maker.step_clock, Maker.second_hub, Maker.interrupt, Maker.interrupt_idle,
)  # fmt: skip


def life(seed: int, bounds: Bounds, makers: Sequence[Make] = MAKERS) -> Iterator[Event]:
    """Events without end: each kind comes once before any comes again."""
    dice = random.Random(seed)
    maker = Maker(dice, bounds)
    while True:
        deck = list(makers)
        dice.shuffle(deck)
        yield from (make(maker) for make in deck)
