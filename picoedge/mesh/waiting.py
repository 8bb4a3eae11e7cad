"""Waiting for messages: first without sleeping, then asleep, and never deaf to reports."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.errors import MeshError

if TYPE_CHECKING:
    from picoedge.mesh.curve import Socket

Callback = Callable[[], None]
Trouble = Callable[[], MeshError | None]
Items = Sequence[tuple[Any, int]]  # sockets, and what is asked of them

LOOK_S = 0.1  # how often reports are looked at while messages never stop coming


class Waiter:
    """Waits for any of some sockets, and calls back for others that are watched meanwhile.

    For `spin_s` it asks without sleeping: to be woken costs more than most sums take to come.
    Between two questions it yields its core to whoever has work there, libzmq's thread above all.
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

    def ready(self, asked: Items, deadline: float | None, trouble: Trouble) -> Socket | None:
        """The first socket with a message; None at the deadline (by time.monotonic).

        Where there is no message and `trouble` knows an error, that is raised.
        """
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self.look(0)
        spin_until = now + self._spin_s
        while True:
            if ready := _poll(asked, 0):
                first: Socket = ready[0][0]
                return first
            if time.monotonic() >= spin_until:
                return self._sleep(asked, deadline, trouble)
            os.sched_yield()

    def _sleep(self, asked: Items, deadline: float | None, trouble: Trouble) -> Socket | None:
        sources: list[Socket] = [socket for socket, _ in asked]
        while True:
            error = trouble()
            if error is not None and not _poll(asked, 0):  # all it sent before has been taken
                raise error
            wait_ms = -1 if deadline is None else _milliseconds(deadline - time.monotonic())
            ready: list[Socket] = [s for s, _ in _poll([*asked, *self._items()], wait_ms)]
            if ready and ready[0] in sources:
                return ready[0]
            if not ready and wait_ms == 0:
                return None
            self._call(ready)

    def look(self, wait_ms: int) -> None:
        """Hear what is reported, waiting at most that long for it."""
        self._call([socket for socket, _ in _poll(self._items(), wait_ms)])

    def _items(self) -> Items:
        return [(socket, zmq.POLLIN) for socket in self._watched]

    def _call(self, ready: list[Socket]) -> None:
        for socket in ready:
            if callback := self._watched.get(socket):
                callback()


def closed(error: zmq.ZMQError) -> MeshError:
    """What is said where sockets are closed while somebody waits."""
    return MeshError(f"the session's links are closed: {error.strerror}")


def _poll(items: Items, wait_ms: int) -> Items:
    try:
        return zmq.zmq_poll(items, wait_ms)
    except zmq.ZMQError as error:
        raise closed(error) from None


def _milliseconds(seconds: float) -> int:
    return max(0, math.ceil(seconds * 1000))
