"""Single answers, typed on another board beside the chat: each is a command of its own."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

from bench.life.boards import PICOEDGE, LifeBoard, LifeBoards
from bench.life.desk.questions import SINGLE
from bench.life.desk.session import ANSWER_S, OPTIONS

OTHER = 1  # the board they are typed on: it has the whole model, as the chat's has
QUEUES = 0.25  # of the answers are over the cluster: they wait until the chat is left
LATEST_S = 10.0  # after an event began
SAID_S = 5.0  # for the command to end, once it was killed


@dataclass(frozen=True)
class Single:
    """A single answer beside the chat: board, command, and seconds after an event began."""

    board: int
    question: str
    command: tuple[str, ...]
    queues: bool
    after_s: float

    def __str__(self) -> str:
        where = "over the cluster" if self.queues else "alone"
        return f"{self.command[0]} on b{self.board + 1}, {where}"


class Wanting:
    """Draws single answers: one beside every second event, or nearly."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    def next(self, may_queue: bool) -> Single | None:
        """Single answers beside the next event. Without `may_queue` none waits for the chat."""
        dice = self._dice
        wanted, queues = dice.random() < 0.5, dice.random() < QUEUES
        question = dice.choice(SINGLE)
        command = dice.choice((("generate",), ("chat",)))
        after_s = dice.uniform(0.0, LATEST_S)
        if not wanted:
            return None
        return Single(OTHER, question, command, queues and may_queue, after_s)


class Beside:
    """One single answer, from when it is typed to its end."""

    def __init__(
        self, single: Single, boards: LifeBoards, pack: str,
        busy: Callable[[], AbstractContextManager[object]],
    ) -> None:  # fmt: skip
        self.single, self._busy = single, busy
        self._board: LifeBoard = boards[single.board]
        words = [*single.command, pack, *OPTIONS, "-p", single.question]
        self._words = [*PICOEDGE, *words, *["--cluster"] * single.queues]
        self._process: subprocess.Popen[Any] | None = None
        self.out, self.err, self.total_s = "", "", 0.0
        self.code: int | None = None
        self._thread = threading.Timer(single.after_s, self._run)
        self._thread.start()

    def _run(self) -> None:
        """Type it, unless the board is off."""
        if not self._board.is_off:
            with self._busy():
                self._communicate()

    def _communicate(self) -> None:
        began = time.monotonic()
        self._process = self._board.board.start(
            self._words, env=self._board.environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            self.out, self.err = self._process.communicate(timeout=ANSWER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self.out, self.err = self._process.communicate(timeout=SAID_S)
        self.code, self.total_s = self._process.returncode, time.monotonic() - began

    @property
    def waits(self) -> bool:
        """Whether it was typed and has not ended."""
        return self._thread.is_alive()

    def end(self, leave: Callable[[], None]) -> None:
        """Wait for it; `leave` the chat first, if it waits for that."""
        if self.single.queues and self.waits:
            leave()
        self._thread.join()

    @property
    def was_killed(self) -> bool:
        """Whether something ended it, rather than itself."""
        return self.code == -signal.SIGKILL
