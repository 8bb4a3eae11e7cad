"""Which job has this board: a pure state machine, without a clock, a socket or a process.

    state, actions = next_state(state, Reserve(connection))

Two kinds of reservation. One in the foreground belongs to a connection: it has the board for
itself, and the others queue in the order they asked. One in the background belongs to a run: its
worker runs while no foreground job wants the board, is stopped for one, and is started again
after it; of several runs, the earliest that has not ended. The board passes on
only when every worker process of its last user has ended, because only then its memory is free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias


@dataclass(frozen=True)
class _OfConnection:
    connection: bytes


@dataclass(frozen=True)
class _OfRun:
    run: str


@dataclass(frozen=True)
class _OfUser:
    user: bytes | str


class Reserve(_OfConnection):
    """A connection wants the board in the foreground. It must not be in the state already."""


class Release(_OfConnection):
    """A connection, in the queue or holding the board, has ended or gives it up."""


class AddRun(_OfRun):
    """A run wants the board in the background."""


class EndRun(_OfRun):
    """A run is over or was called off. Unknown runs are ignored."""


class WorkerStarted(_OfConnection):
    """The holder has started a worker process; a second one counts beside the first."""


class WorkerEnded(_OfUser):
    """A worker process of this user is gone. A run whose worker was not stopped is over.

    A run whose worker ends by itself needs `EndRun` at once: another may want the board before the
    process is gone, and the run would be started again.
    """


BoardEvent: TypeAlias = Reserve | Release | AddRun | EndRun | WorkerStarted | WorkerEnded


class Grant(_OfConnection):
    """The connection has the board now."""


class StartRun(_OfRun):
    """Start the run's worker, or start it again; `WorkerEnded` must follow, even if that fails."""


class Stop(_OfUser):
    """End the worker of this user; `WorkerEnded` must follow for each process."""


@dataclass(frozen=True)
class Queued:
    """The connection's place in the queue, from 1, and the holder have changed."""

    connection: bytes
    place: int
    holder: bytes


Action: TypeAlias = Grant | StartRun | Stop | Queued


@dataclass(frozen=True)
class State:
    """Users of the board: connections (bytes) in the foreground, runs (str) in the background."""

    holder: bytes | None = None
    queue: tuple[bytes, ...] = ()
    runs: tuple[str, ...] = ()
    active: str | None = None  # the run whose worker has the board
    workers: tuple[bytes | str, ...] = ()  # the user of each process that has not ended

    @property
    def places(self) -> dict[bytes, tuple[int, bytes | None]]:
        """Place in the queue, from 1, and the holder, for each connection in the queue."""
        return {connection: (i, self.holder) for i, connection in enumerate(self.queue, 1)}


def next_state(state: State, event: BoardEvent) -> tuple[State, list[Action]]:
    """The state after an event, and what to do, in this order."""
    after, actions = _pass_on(*_take(state, event))
    told = state.places
    for connection, (place, holder) in after.places.items():
        if holder is not None and told.get(connection) != (place, holder):
            actions = [*actions, Queued(connection, place, holder)]
    return after, actions


def _take(state: State, event: BoardEvent) -> tuple[State, list[Action]]:
    match event:
        case Reserve(connection):
            return replace(state, queue=(*state.queue, connection)), []
        case Release(connection):
            queue = tuple(other for other in state.queue if other != connection)
            if connection != state.holder:
                return replace(state, queue=queue), []
            return replace(state, holder=None), _stop(state, connection)
        case AddRun(run):
            runs = state.runs if run in state.runs else (*state.runs, run)
            return replace(state, runs=runs), []
        case EndRun(run):
            return _end_run(state, run)
        case WorkerStarted(connection):
            return replace(state, workers=(*state.workers, connection)), []
        case WorkerEnded(user):
            workers = list(state.workers)
            if user in workers:
                workers.remove(user)
            state = replace(state, workers=tuple(workers))
            if isinstance(user, str) and user == state.active:
                return _end_run(state, user)
            return state, []


def _end_run(state: State, run: str) -> tuple[State, list[Action]]:
    actions = _stop(state, run) if run == state.active else []
    runs = tuple(other for other in state.runs if other != run)
    active = None if run == state.active else state.active
    return replace(state, runs=runs, active=active), actions


def _stop(state: State, user: bytes | str) -> list[Action]:
    return [Stop(user)] if user in state.workers else []


def _pass_on(state: State, actions: list[Action]) -> tuple[State, list[Action]]:
    """Give the board to the next user if it is free; push a run aside for the foreground."""
    if state.active is not None and state.queue:
        actions = [*actions, *_stop(state, state.active)]
        state = replace(state, active=None)
    if state.workers or state.holder is not None or state.active is not None:
        return state, actions
    if state.queue:
        first, *queue = state.queue
        return replace(state, holder=first, queue=tuple(queue)), [*actions, Grant(first)]
    if state.runs:
        run = state.runs[0]
        return replace(state, active=run, workers=(run,)), [*actions, StartRun(run)]
    return state, actions
