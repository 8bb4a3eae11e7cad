"""Waiting for messages: first without sleeping, then in a poll that also serves other sockets."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import zmq

from picoedge.errors import MeshError

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Socket

T = TypeVar("T")
Callback = Callable[[], None]
Trouble = Callable[[], MeshError | None]
Items = Sequence[tuple[Any, int]]  # (a socket or a file descriptor, POLLIN | POLLOUT)

# Watched sockets are polled that often while messages never stop coming: a lost board is then
# noticed in a tenth of the second that heartbeats take.
LOOK_S = 0.1


class PollSource(Protocol):
    """Sockets that change, with a timer; `handle` is called after each poll, and must not block."""

    def items(self) -> Items:
        """What to poll now."""

    def due(self) -> float | None:
        """When (time.monotonic) `handle` must be called at the latest."""

    def handle(self) -> None:
        """Take in what has come; may raise."""


class Waiter:
    """Waits until an attempt succeeds, and serves watched sockets meanwhile.

    For `spin_s` it tries without sleeping, as a wake-up takes longer than most sums, and yields the
    core between two attempts.
    """

    def __init__(self, spin_s: float) -> None:
        self._spin_s = spin_s
        self._watched: dict[Socket, Callback] = {}
        self._sources: list[PollSource] = []
        self._look_at = 0.0

    def watch(self, socket: Socket, callback: Callback) -> None:
        """Poll this socket in every wait; the callback empties it, and may raise."""
        self._watched[socket] = callback

    def unwatch(self, socket: Socket) -> None:
        """Poll it no more."""
        self._watched.pop(socket, None)

    def add_source(self, source: PollSource) -> None:
        """Serve this source in every wait."""
        if source not in self._sources:
            self._sources.append(source)

    def remove_source(self, source: PollSource) -> None:
        """Serve it no more."""
        if source in self._sources:
            self._sources.remove(source)

    def wait(
        self,
        attempt: Callable[[], T | None],
        items: Callable[[], Items],
        deadline: float | None,
        trouble: Trouble,
    ) -> T | None:
        """The first result of `attempt` that is not None; None at the deadline (time.monotonic).

        `items` are polled between attempts. Where an attempt gives nothing and `trouble` returns an
        error, that is raised.
        """
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._poll((), 0)
        spin_until = now + self._spin_s
        while (result := attempt()) is None:
            if time.monotonic() >= spin_until:
                return self._sleep(attempt, items, deadline, trouble)
            os.sched_yield()
        return result

    def _sleep(
        self,
        attempt: Callable[[], T | None],
        items: Callable[[], Items],
        deadline: float | None,
        trouble: Trouble,
    ) -> T | None:
        while True:
            result = attempt()
            if result is None and (error := trouble()) is not None:
                result = attempt()  # messages sent before the failure count
                if result is None:
                    raise error
            if result is not None:
                return result
            wait_s = None if deadline is None else deadline - time.monotonic()
            if wait_s is not None and wait_s <= 0:
                return None
            self._poll(items(), wait_s)

    def _poll(self, items: Items, wait_s: float | None) -> None:
        watched: list[tuple[Any, int]] = [(socket, zmq.POLLIN) for socket in self._watched]
        for source in self._sources:
            watched += source.items()
            due = source.due()
            wait_s = _least(wait_s, None if due is None else max(0.0, due - time.monotonic()))
        wait_ms = -1 if wait_s is None else math.ceil(wait_s * 1000)
        try:
            ready = zmq.zmq_poll([*items, *watched], wait_ms)
        except zmq.ZMQError as error:
            raise MeshError(f"the session's links are closed: {error.strerror}") from None
        self._serve(socket for socket, _ in ready)

    def _serve(self, ready: Iterable[Any]) -> None:
        for socket in ready:
            if callback := self._watched.get(socket):
                callback()
        for source in list(self._sources):
            source.handle()


def _least(first: float | None, second: float | None) -> float | None:
    """The shorter time; None is for ever."""
    return min((each for each in (first, second) if each is not None), default=None)
