"""Reservations of this board by jobs: a pure state machine, without clock, socket or process.

    actions = reservations.reserve(connection)

Two kinds of reservation. One in the foreground belongs to a connection: it has the board for
itself, and the others queue in the order they asked. One in the background belongs to a run: its
worker runs while no foreground job wants the board, is stopped for one, and is started again
after it; of several runs, the earliest that has not ended. The board passes on only when every
worker process of its last user has ended, or keeps its slice without a job: only then is its
memory known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

User: TypeAlias = bytes | str  # a connection in the foreground, a run in the background


@dataclass(frozen=True)
class Grant:
    """The connection has the board now."""

    connection: bytes


@dataclass(frozen=True)
class StartRun:
    """Start the run's worker, or start it again; `worker_ended` must follow, even if that fails."""

    run: str


@dataclass(frozen=True)
class Stop:
    """End the worker of this user; `worker_ended` must follow for each process."""

    user: User


@dataclass(frozen=True)
class Queued:
    """The connection's place in the queue, from 1, and the holder have changed."""

    connection: bytes
    place: int
    holder: bytes


Action: TypeAlias = Grant | StartRun | Stop | Queued


@dataclass
class Reservations:
    """Users of the board. Each method is an event, and returns what to do, in this order."""

    holder: bytes | None = None
    queue: list[bytes] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    active: str | None = None  # the run whose worker has the board
    runs_wait: bool = False  # for memory that another has: none is started
    workers: list[User] = field(default_factory=list)  # the user of each process not ended yet
    _told: dict[bytes, tuple[int, bytes | None]] = field(default_factory=dict, compare=False)

    @property
    def user(self) -> User | None:
        """The user that has the board now."""
        return self.active if self.holder is None else self.holder

    def reserve(self, connection: bytes) -> list[Action]:
        """A connection wants the board in the foreground. It must not be here already."""
        self.queue.append(connection)
        return self._pass_on([])

    def release(self, connection: bytes) -> list[Action]:
        """A connection, in the queue or holding the board, has ended or gives it up."""
        if connection == self.holder:
            self.holder = None
            return self._pass_on(self._stop(connection))
        self.queue = [other for other in self.queue if other != connection]
        return self._pass_on([])

    def add_run(self, run: str) -> list[Action]:
        """A run wants the board in the background."""
        if run not in self.runs:
            self.runs.append(run)
        return self._pass_on([])

    def end_run(self, run: str) -> list[Action]:
        """A run is over or was called off. Unknown runs are ignored."""
        self.runs = [other for other in self.runs if other != run]
        if run != self.active:
            return self._pass_on([])
        self.active = None
        return self._pass_on(self._stop(run))

    def let_runs_wait(self, wait: bool) -> list[Action]:
        """Start no run from now on, or start them again."""
        self.runs_wait = wait
        return self._pass_on([])

    def worker_started(self, connection: bytes) -> list[Action]:
        """The holder has started a worker process; a second one counts beside the first."""
        self.workers.append(connection)
        return self._pass_on([])

    def worker_ended(self, user: User) -> list[Action]:
        """A worker process of this user is gone. A run whose worker was not stopped is over.

        A run whose worker ends by itself needs `end_run` at once: another may want the board before
        the process is gone, and the run would be started again.
        """
        if user in self.workers:
            self.workers.remove(user)
        if isinstance(user, str) and user == self.active:
            return self.end_run(user)
        return self._pass_on([])

    def _stop(self, user: User) -> list[Action]:
        return [Stop(user)] if user in self.workers else []

    def _pass_on(self, actions: list[Action]) -> list[Action]:
        """Give the board to the next user if it is free; push a run aside for the foreground."""
        if self.active is not None and self.queue:
            actions += self._stop(self.active)
            self.active = None
        if not self.workers and self.holder is None and self.active is None:
            if self.queue:
                self.holder = self.queue.pop(0)
                actions.append(Grant(self.holder))
            elif self.runs and not self.runs_wait:
                self.active = self.runs[0]
                self.workers.append(self.active)
                actions.append(StartRun(self.active))
        told, self._told = self._told, {}
        for place, connection in enumerate(self.queue, 1):
            self._told[connection] = (place, self.holder)
            if self.holder is not None and told.get(connection) != (place, self.holder):
                actions.append(Queued(connection, place, self.holder))
        return actions
