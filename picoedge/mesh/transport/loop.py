"""One thread that waits for sockets, files and moments, and calls what is due."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Socket

Call = Callable[[], None]


class Loop:
    """Calls back what is readable and what is due, until `stop`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._poller = zmq.Poller()
        self._calls: dict[object, tuple[Call | None, Call | None]] = {}
        self._due: list[tuple[float, int, list[Call]]] = []
        self._numbers = itertools.count()
        self._soon: deque[Call] = deque()
        self._stopped = False
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.add(self._wake_out, self._woken)

    def add(self, what: Socket | int, readable: Call | None, writable: Call | None = None) -> None:
        """Call `readable` whenever there is something to read; replaces what was set before."""
        events = (zmq.POLLIN if readable else 0) | (zmq.POLLOUT if writable else 0)
        self._calls[what] = (readable, writable)
        self._poller.register(what, events)

    def remove(self, what: Socket | int) -> None:
        """Forget a socket or file; to be called before it is closed."""
        if self._calls.pop(what, None) is not None and what in self._poller:
            self._poller.unregister(what)

    def after(self, delay_s: float, call: Call) -> Call:
        """Call once after `delay_s`; what is returned cancels it."""
        entry = [call]
        heapq.heappush(self._due, (self.clock() + delay_s, next(self._numbers), entry))
        return entry.clear

    def soon(self, call: Call) -> None:
        """Call in the loop's own thread. Safe in a signal handler and from any thread."""
        self._soon.append(call)
        self._wake()

    def run(self) -> None:
        """Until `stop`; what was stopped before it ran does not run."""
        while not self._stopped:
            self.turn()

    def turn(self, most_s: float | None = None) -> None:
        """Wait for one thing to happen, at most `most_s`, and do what is due."""
        ready = self._poller.poll(self._wait_ms(most_s))
        for what, events in ready:
            readable, writable = self._calls.get(what, (None, None))
            if readable is not None and events & ~zmq.POLLOUT:
                readable()
            # The first call may have removed it.
            if writable is not None and events & zmq.POLLOUT and what in self._calls:
                writable()
        self._call_due()

    def stop(self) -> None:
        """End `run` after its present turn. Safe in a signal handler and from any thread."""
        self._stopped = True
        self._wake()

    def close(self) -> None:
        """Let go of the pipe. Sockets are their owners'. Idempotent."""
        self._stopped = True
        for name in ("_wake_out", "_wake_in"):
            file = getattr(self, name)
            if file >= 0:
                setattr(self, name, -1)
                os.close(file)

    def _wait_ms(self, most_s: float | None) -> int | None:
        waits = [] if most_s is None else [most_s]
        if self._due:
            waits.append(self._due[0][0] - self.clock())
        return max(0, int(min(waits) * 1000) + 1) if waits else None

    def _call_due(self) -> None:
        now_s = self.clock()
        while self._due and self._due[0][0] <= now_s:
            _, _, entry = heapq.heappop(self._due)
            for call in entry:
                call()

    def _wake(self) -> None:
        # A full pipe wakes as well; a closed one has nobody to wake.
        with contextlib.suppress(OSError):
            os.write(self._wake_in, b"!")

    def _woken(self) -> None:
        os.read(self._wake_out, 4096)
        for _ in range(len(self._soon)):
            self._soon.popleft()()
