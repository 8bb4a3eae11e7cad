"""Threads for the NumPy twin: NumPy lets go of the interpreter inside each array operation."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Made = TypeVar("Made")
Key = TypeVar("Key", bound=Hashable)


class Scratch:
    """One thread's memory: buffers by name that grow to the largest use and are shared by all.

    What an operation leaves in a buffer is gone when the next one runs.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, npt.NDArray[np.uint8]] = {}
        self._made: dict[Hashable, Any] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array, not cleared, at the start of the buffer `name`."""
        kind = np.dtype(dtype)
        nbytes = math.prod(shape) * kind.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < nbytes:
            self._made.clear()  # what was made over the smaller buffer would keep it alive
            buffer = self._buffers[name] = np.empty(nbytes, np.uint8)
        return np.ndarray(shape, kind, buffer.data)

    def once(self, key: Key, make: Callable[[Key, Scratch], Made]) -> Made:
        """What `make` made of `key` and this scratch the first time it was asked for."""
        made: Made | None = self._made.get(key)
        if made is None:
            made = make(key, self)
            self._made[key] = made
        return made


Job = Callable[[Scratch], None]


class Team:
    """Runs lists of jobs on `threads` threads, the caller's among them."""

    def __init__(self, threads: int) -> None:
        self.threads = max(1, threads)
        self.scratch = Scratch()  # the caller's own
        self._helpers: list[threading.Thread] = []
        self._inbox: SimpleQueue[deque[Job] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()

    def run(self, jobs: Iterable[Job]) -> None:
        """Do all jobs, in any order, and return when they are done; raises what one raised."""
        todo = deque(jobs)
        helpers = min(self.threads, len(todo)) - 1
        if helpers > 0 and not self._helpers:
            self._start()
        for _ in range(helpers):
            self._inbox.put(todo)
        errors = [_drain(todo, self.scratch), *(self._done.get() for _ in range(helpers))]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """Stop the helpers. Idempotent; a later run starts them again."""
        for _ in self._helpers:
            self._inbox.put(None)
        for helper in self._helpers:
            helper.join()
        self._helpers.clear()

    def _start(self) -> None:
        for i in range(1, self.threads):
            helper = threading.Thread(target=self._help, name=f"numpy-{i}", daemon=True)
            helper.start()
            self._helpers.append(helper)

    def _help(self) -> None:
        scratch = Scratch()
        while (todo := self._inbox.get()) is not None:
            self._done.put(_drain(todo, scratch))


def _drain(todo: deque[Job], scratch: Scratch) -> BaseException | None:
    try:
        while True:
            try:
                job = todo.popleft()
            except IndexError:
                return None
            job(scratch)
    except BaseException as error:  # carried to the caller's thread and raised there
        todo.clear()
        return error
