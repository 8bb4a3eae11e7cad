"""Rations of a key: some malformed messages, and so many bytes; of a connection: unread bytes.

Strikes are counted for a while: a bug of one night is not held for ever. A ration is a burst that
grows again with time. Unread bytes are bounded from a thread, as their program may be busy.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from picoedge.mesh.transport.curve import received, shut_down

K = TypeVar("K", bound=Hashable)

FADED_S = 600.0  # since the last one of a key
_LOOK_S = 0.25  # between two counts of unread bytes
_BESIDE_BYTES_PER_S = 1024  # above those beside messages, as heartbeats and answers to them
_FRAME_BYTES = 35  # of a frame over CURVE, at least, beside its content


class Strikes:
    """`add` and `forget` are given the time, in seconds from any beginning."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, float]] = {}  # and when the last one was; oldest first

    def add(self, key: str, now_s: float) -> int:
        """Count one more of a key; how many there are now."""
        self.forget(now_s)
        count = self._counts.pop(key, (0, now_s))[0] + 1
        self._counts[key] = count, now_s
        return count

    def forget(self, now_s: float) -> None:
        """Forget keys that have been well for FADED_S."""
        while self._counts:
            key, (_, last_s) = next(iter(self._counts.items()))
            if now_s - last_s < FADED_S:
                return
            del self._counts[key]


class Ration(Generic[K]):
    """Of each peer, `burst_bytes` and then so many bytes a second as `over` is told."""

    def __init__(self, burst_bytes: int) -> None:
        self._burst_bytes = burst_bytes
        self._left: dict[K, float] = {}  # where it is less than a whole burst
        self._counted_s = 0.0

    def over(self, received: Mapping[K, tuple[int, int]], now_s: float) -> set[K]:
        """Peers that sent more than their ration.

        `received`: bytes since the last call, and bytes a second allowed. A call that comes late
        allows for the delay.
        """
        passed_s, self._counted_s = now_s - self._counted_s, now_s
        before, self._left = self._left, {}
        for peer, (nbytes, rate) in received.items():
            burst = max(self._burst_bytes, rate * passed_s)
            left = min(burst, before.get(peer, burst) + rate * passed_s) - nbytes
            if left < burst:
                self._left[peer] = left
        return {peer for peer, left in self._left.items() if left < 0}


class Inbox:
    """The bytes of a connection that wait to be read; at most `most_bytes` may.

    Its reader calls `took` for each message, and `emptied` when none is left.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._file = self._inode = -1  # of the connection; its descriptor may be reused
        self._base_bytes = self._taken_bytes = 0
        self._base_s = 0.0
        self._was_emptied = False
        self.is_over = False  # more came, and the connection was shut down

    def opened(self, file: int) -> None:
        """The connection, or the next one, has this descriptor."""
        self._file, self._inode = file, _inode(file)
        self._base_bytes, self._base_s, self._taken_bytes = 0, time.monotonic(), 0

    def took(self, nbytes: int) -> None:
        """A frame of so many bytes was read."""
        self._taken_bytes += nbytes + _FRAME_BYTES

    def emptied(self) -> None:
        """All that had come was read."""
        self._was_emptied = True

    def look(self, now_s: float) -> bool:
        """Shut the connection down if too much is unread; whether it still stands."""
        if self._file < 0 or _inode(self._file) != self._inode:
            return False
        nbytes, _ = received(self._file)
        if self._was_emptied:
            self._was_emptied = False
            self._base_bytes, self._base_s, self._taken_bytes = nbytes, now_s, 0
        beside = _BESIDE_BYTES_PER_S * (now_s - self._base_s)
        if nbytes - self._base_bytes - self._taken_bytes > self._most_bytes + beside:
            self.is_over = True
            shut_down(self._file)
        return True


class InboxGuard:
    """Ends connections over which more has come than their program reads, from a thread.

    libzmq's own bound would let the other side abort this process: see `SocketBounds`. A hub that
    waits for its user reads nothing for hours.
    """

    def __init__(self) -> None:
        self._inboxes: list[Inbox] = []
        self._finding: list[Callable[[], None]] = []
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)

    def watch(self, inbox: Inbox, file: int) -> None:
        """Guard an inbox, whose connection has this descriptor, until that has ended."""
        with self._lock:
            inbox.opened(file)
            if inbox not in self._inboxes:
                self._inboxes.append(inbox)
            self._start()

    def find_by(self, find: Callable[[], None]) -> None:
        """Call this, which watches connections that are new, from now on: see `find`."""
        with self._lock:
            self._finding.append(find)
            self._start()

    def find(self, find: Callable[[], None]) -> None:
        """Call such a function now, while the thread does not."""
        with self._lock:
            find()

    def _start(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_S):
            with self._lock:
                for find in self._finding:
                    find()
                now_s = time.monotonic()
                self._inboxes = [each for each in self._inboxes if each.look(now_s)]

    def close(self) -> None:
        """To be called before the connections' sockets are closed. Idempotent."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()


def _inode(file: int) -> int:
    try:
        return os.fstat(file).st_ino
    except OSError:
        return 0
