"""The event loop of a daemon outlives faults of what it calls."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from picoedge.mesh.transport.loop import MOST_FAULTS, Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def fail() -> None:
    raise KeyError("a fault")


def test_a_fault_ends_a_loop_that_is_given_nothing_to_tell(loop: Loop) -> None:
    loop.after(0.0, fail)
    with pytest.raises(KeyError):
        loop.run()


@pytest.mark.timeout(20)
def test_a_timer_a_file_or_a_call_from_elsewhere_may_fail(loop: Loop) -> None:
    faults, done = list[Exception](), list[str]()
    loop.on_fault = faults.append
    readable, writable = os.pipe()
    try:

        def read() -> None:
            os.read(readable, 1)
            fail()

        os.write(writable, b"x")
        loop.add(readable, read)
        loop.after(0.0, fail)
        loop.after(0.001, lambda: done.append("a timer behind it"))
        loop.soon(fail)
        loop.soon(lambda: done.append("a call behind it"))
        while len(faults) < 3 or len(done) < 2:
            loop.turn()
    finally:
        os.close(readable)
        os.close(writable)
    assert sorted(done) == ["a call behind it", "a timer behind it"]


@pytest.mark.timeout(20)
def test_faults_without_end_end_it(loop: Loop) -> None:
    """A file whose call fails each time would keep a processor busy for ever."""
    faults = list[Exception]()
    loop.on_fault = faults.append
    readable, writable = os.pipe()
    try:
        os.write(writable, b"x")
        loop.add(readable, fail)
        with pytest.raises(KeyError):
            loop.run()
    finally:
        os.close(readable)
        os.close(writable)
    assert len(faults) == MOST_FAULTS
