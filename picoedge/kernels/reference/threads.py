"""Threads of the reference backend: NumPy releases the interpreter lock in each array operation."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from picoedge.kernels.arrays import U8, Array

_Made = TypeVar("_Made")
_Key = TypeVar("_Key", bound=Hashable)

_LEAST_BYTES = 1 << 22  # least bytes of a buffer: pages that are not touched cost nothing


class Scratch:
    """One thread's buffers by name, shared by all operations; each grows to its largest use.

    The contents of a buffer are valid until the next operation takes it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, U8] = {}
        self._made: dict[Hashable, Any] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An array, not cleared, at the start of the buffer `name`."""
        kind = np.dtype(dtype)
        nbytes = math.prod(shape) * kind.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < nbytes:
            buffer = self._buffers[name] = np.empty(max(nbytes, _LEAST_BYTES), np.uint8)
        return np.ndarray(shape, kind, buffer.data)

    def once(self, key: _Key, make: Callable[[_Key, Scratch], _Made]) -> _Made:
        """make(key, self), made at the first call with this `make` and `key` and then kept."""
        made: _Made | None = self._made.get((make, key))
        if made is None:
            made = make(key, self)
            self._made[make, key] = made
        return made


class Program:
    """Array operations bound to their arrays, run once a token with new values in the arrays.

    Python does nothing between two operations but call the next: an operation takes a few
    microseconds, and the time between two is spent under the interpreter lock.
    """

    def __init__(self) -> None:
        self.steps: list[Callable[[], object]] = []

    def add(self, function: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Append one operation."""
        self.steps.append(partial(function, *args, **kwargs))

    def run(self) -> None:
        """Run all operations in order."""
        for step in self.steps:
            step()


Job = Callable[[Scratch], None]


class ThreadPool:
    """Runs jobs on `threads` threads, the caller's among them."""

    def __init__(self, threads: int) -> None:
        self.threads = max(1, threads)
        self.scratch = [Scratch() for _ in range(self.threads)]  # the caller's first
        self._parts: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._helpers: list[threading.Thread] = []
        self._closed = False

    def run(self, jobs: Iterable[Job]) -> None:
        """Run all jobs, in any order; returns when all are done. Raises the exception of a job."""
        todo = deque(jobs)
        count = min(self.threads, len(todo))
        self._run([partial(_drain, todo, scratch) for scratch in self.scratch[:count]])

    def run_programs(self, programs: Sequence[Program]) -> None:
        """Run programs side by side, each in its own scratch. Raises the exception of one."""
        self._run([program.run for program in programs])

    def close(self) -> None:
        """Stop the helpers. Idempotent; no run may follow."""
        self._closed = True
        for _ in self._helpers:
            self._parts.put(None)
        for helper in self._helpers:
            helper.join()
        self._helpers.clear()

    def _run(self, parts: Sequence[Callable[[], None]]) -> None:
        assert not self._closed, "the kernels are closed"
        if not parts:
            return
        if len(parts) > 1 and not self._helpers:
            self._start()
        for part in parts[1:]:
            self._parts.put(part)
        errors = [_attempt(parts[0]), *(self._done.get() for _ in parts[1:])]
        for error in errors:
            if error is not None:
                raise error

    def _start(self) -> None:
        for i in range(1, self.threads):
            queues = self._parts, self._done
            helper = threading.Thread(target=_help, args=queues, name=f"numpy-{i}", daemon=True)
            helper.start()
            self._helpers.append(helper)


def _help(
    parts: SimpleQueue[Callable[[], None] | None], done: SimpleQueue[BaseException | None]
) -> None:
    while (part := parts.get()) is not None:
        done.put(_attempt(part))


def _attempt(part: Callable[[], None]) -> BaseException | None:
    try:
        part()
    except BaseException as error:  # carried to the caller's thread and raised there
        return error
    return None


def _drain(todo: deque[Job], scratch: Scratch) -> None:
    while True:
        try:
            job = todo.popleft()
        except IndexError:
            return
        try:
            job(scratch)
        except BaseException:
            todo.clear()
            raise
