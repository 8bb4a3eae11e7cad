"""Waiting for messages: first without sleeping, then asleep, and never deaf to reports."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import zmq

from picoedge.errors import MeshError

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Socket

T = TypeVar("T")
Callback = Callable[[], None]
Trouble = Callable[[], MeshError | None]
Items = Sequence[tuple[Any, int]]  # sockets or files, and what is asked of them

LOOK_S = 0.1  # how often reports are looked at while messages never stop coming


class Waiter:
    """Waits until something is there, and calls back for sockets that are watched meanwhile.

    For `spin_s` it asks without sleeping: to be woken costs more than most sums take to come.
    Between two questions it yields its core to whoever has work there.
    """

    def __init__(self, spin_s: float) -> None:
        self._spin_s = spin_s
        self._watched: dict[Socket, Callback] = {}
        self._look_at = 0.0

    def watch(self, socket: Socket, callback: Callback) -> None:
        """Poll this socket in every wait; the callback empties it, and may raise."""
        self._watched[socket] = callback

    def unwatch(self, socket: Socket) -> None:
        """Poll it no more."""
        self._watched.pop(socket, None)

    def wait(
        self,
        attempt: Callable[[], T | None],
        items: Callable[[], Items],
        deadline: float | None,
        trouble: Trouble,
    ) -> T | None:
        """What `attempt` finds; None where it is the deadline (by time.monotonic) and it has not.

        `items` are the files that tell when it may. Where it finds nothing and `trouble` knows an
        error, that is raised.
        """
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._call(_poll(self._items(), 0))
        spin_until = now + self._spin_s
        while (found := attempt()) is None:
            if time.monotonic() >= spin_until:
                return self._sleep(attempt, items, deadline, trouble)
            os.sched_yield()
        return found

    def _sleep(
        self,
        attempt: Callable[[], T | None],
        items: Callable[[], Items],
        deadline: float | None,
        trouble: Trouble,
    ) -> T | None:
        while True:
            error = trouble()
            found = attempt()  # what was sent before the trouble counts
            if found is not None:
                return found
            if (error := error or trouble()) is not None:
                raise error
            wait_ms = -1 if deadline is None else _milliseconds(deadline - time.monotonic())
            if wait_ms == 0:
                return None
            self._call(_poll([*items(), *self._items()], wait_ms))

    def _items(self) -> Items:
        return [(socket, zmq.POLLIN) for socket in self._watched]

    def _call(self, ready: Items) -> None:
        for socket, _ in ready:
            if callback := self._watched.get(socket):
                callback()


def _poll(items: Items, wait_ms: int) -> Items:
    try:
        return zmq.zmq_poll(items, wait_ms)
    except zmq.ZMQError as error:
        raise MeshError(f"the session's links are closed: {error.strerror}") from None


def _milliseconds(seconds: float) -> int:
    return max(0, math.ceil(seconds * 1000))
