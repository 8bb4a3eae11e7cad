"""Event loop of one thread: sockets, files and timers. (asyncio would take 8 MB of a daemon.)"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Socket

Call = Callable[[], None]

MOST_FAULTS, FAULTS_S = 1000, 60.0  # a socket whose call fails each time would never let it rest


class Loop:
    """Calls callbacks of readable sockets and due timers, until `stop`. `clock` is in seconds.

    `on_fault`, where it is set, is given what a callback raises, and the loop goes on, until that
    were MOST_FAULTS in FAULTS_S. Without it the first one ends the loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._poller = zmq.Poller()
        self._calls: dict[object, tuple[Call | None, Call | None]] = {}
        self._due: list[tuple[float, int, list[Call]]] = []
        self._numbers = itertools.count()
        self._soon: deque[Call] = deque()
        self._stopped = False
        self.on_fault: Callable[[Exception], None] | None = None
        self._faults, self._faults_since_s = 0, clock()
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.add(self._wake_out, self._woken)

    def add(self, what: Socket | int, readable: Call | None, writable: Call | None = None) -> None:
        """Call `readable` or `writable` whenever the socket or file is; replaces earlier ones."""
        events = (zmq.POLLIN if readable else 0) | (zmq.POLLOUT if writable else 0)
        self._calls[what] = (readable, writable)
        self._poller.register(what, events)

    def remove(self, what: Socket | int) -> None:
        """Stop watching a socket or file; to be called before it is closed."""
        if self._calls.pop(what, None) is not None and what in self._poller:
            self._poller.unregister(what)

    def after(self, delay_s: float, call: Call) -> Call:
        """Call once after `delay_s` seconds; returns a function that cancels it."""
        entry = [call]
        heapq.heappush(self._due, (self.clock() + delay_s, next(self._numbers), entry))
        return entry.clear

    def soon(self, call: Call) -> None:
        """Call in the loop's thread. Safe in a signal handler and from any thread."""
        self._soon.append(call)
        self._wake()

    def run(self) -> None:
        """Run until `stop`, which may have been called before."""
        while not self._stopped:
            self.turn()

    def turn(self) -> None:
        """Wait for one event, and call the handlers and timers due."""
        wait_ms = None
        if self._due:
            wait_ms = max(0, int((self._due[0][0] - self.clock()) * 1000) + 1)
        ready = self._poller.poll(wait_ms)
        for what, events in ready:
            readable, writable = self._calls.get(what, (None, None))
            if readable is not None and events & ~zmq.POLLOUT:
                self._guarded(readable)
            # `readable` may have removed it.
            if writable is not None and events & zmq.POLLOUT and what in self._calls:
                self._guarded(writable)
        self._call_due()

    def stop(self) -> None:
        """End `run` after this turn. Safe in a signal handler and from any thread."""
        self._stopped = True
        self._wake()

    def close(self) -> None:
        """Close the wake-up pipe; sockets belong to their owners. Idempotent."""
        self._stopped = True
        if self._wake_out >= 0:
            os.close(self._wake_out)
            os.close(self._wake_in)
            self._wake_out = self._wake_in = -1

    def _call_due(self) -> None:
        now_s = self.clock()
        while self._due and self._due[0][0] <= now_s:
            _, _, entry = heapq.heappop(self._due)
            for call in entry:
                self._guarded(call)

    def _guarded(self, call: Call) -> None:
        """Call it. What it raises is given to `on_fault`, but where there is no end to it."""
        try:
            call()
        except Exception as error:
            now_s = self.clock()
            if now_s - self._faults_since_s > FAULTS_S:
                self._faults_since_s, self._faults = now_s, 0
            self._faults += 1
            if self.on_fault is None or self._faults > MOST_FAULTS:
                raise
            self.on_fault(error)

    def _wake(self) -> None:
        # A full pipe wakes the loop as well; with a closed one there is no loop to wake.
        with contextlib.suppress(OSError):
            os.write(self._wake_in, b"!")

    def _woken(self) -> None:
        os.read(self._wake_out, 4096)
        for _ in range(len(self._soon)):
            self._guarded(self._soon.popleft())


def turns(most: int, seconds: float) -> Iterator[None]:
    """Once, and then again until it was `most` times or for so many seconds."""
    end_s = time.monotonic() + seconds
    for number in range(most):
        if number and time.monotonic() > end_s:
            return
        yield
