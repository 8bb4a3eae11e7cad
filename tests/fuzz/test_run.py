"""A run of fuzzers: every input is tried, and what ends, hangs or swells a process is found."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from fuzz import child, trial
from fuzz.run import MOST_IN_A_PART, Tally, parts_of, run_parts
from fuzz.target import Run, Target
from fuzz.trial import Fault, Stopwatch, try_input


def target(run: Callable[[bytes], object], name: str = "one", weight: int = 1) -> Target:
    """A target whose samples are of two bytes, and whose inputs of one: 0 to 99."""
    return Target(
        name,
        lambda folder: lambda data: run(data) if len(data) == 1 else None,
        lambda: [b"xy"],
        lambda rng, given: bytes([rng.randrange(100)]),
        weight=weight,
    )


def run(*targets: Target, inputs: int = 300, seconds: float = 60.0) -> Tally:
    parts = parts_of(targets, inputs, seed=1)
    return run_parts(parts, 2, seconds, lambda fault: None, lambda tried, faults: None)


def test_at_least_as_many_inputs_are_tried_as_asked_for() -> None:
    parts = parts_of([target(len, "a", 3), target(len, "b", 4)], 10_000, 1)
    assert sum(len(part.numbers) for part in parts) >= 10_000
    assert max(len(part.numbers) for part in parts) <= MOST_IN_A_PART
    assert [part.target.name for part in parts[:4]] == ["a", "b", "a", "b"]


def test_all_inputs_are_tried() -> None:
    tally = run(target(len, "a"), target(len, "b"), inputs=400)
    assert tally.tried == {"a": 200, "b": 200}
    assert tally.wrong == 0


def ends(data: bytes) -> None:
    if data == b"\7":
        os._exit(3)


def test_an_input_that_ends_the_process_is_found_and_the_others_are_tried() -> None:
    tally = run(target(ends), inputs=2100)
    assert tally.tried == {"one": 2100}
    [fault] = tally.faults["one"]
    assert (fault.what, fault.data) == ("the process ended with 3", b"\7")


def hangs(data: bytes) -> None:
    while data == b"\7":
        pass


def hangs_in_c(data: bytes) -> None:
    if data == b"\7":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        ctypes.CDLL(None).pause()


@pytest.mark.parametrize(("parser", "what"), [(hangs, "HangError"), (hangs_in_c, "hangs outside")])
def test_an_input_that_hangs_is_found(
    parser: Run, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "HANG_S", 0.1)
    monkeypatch.setattr(child, "NATIVE_HANG_S", 0.5)
    tally = run(target(parser), inputs=300)
    assert tally.tried == {"one": 300}
    [fault] = tally.faults["one"]
    assert fault.what.startswith(what)
    assert fault.data == b"\7"


def test_an_input_that_takes_memory_is_found() -> None:
    def swells(data: bytes) -> None:
        if data == b"\7":
            b"x" * (90 << 20)

    [fault] = run(target(swells)).faults["one"]
    assert fault.what.startswith("memory: ")
    assert fault.data == b"\7"


def test_memory_that_is_never_given_back_is_found() -> None:
    kept: list[bytearray] = []
    [fault] = run(target(lambda data: kept.append(bytearray(b"x" * (1 << 20))))).faults["one"]
    assert fault.what.startswith("leak: ")


def test_a_fuzzer_that_fails_itself_is_no_fault_of_a_parser() -> None:
    def broken(folder: Path) -> Run:
        raise OSError("no disk")

    with pytest.raises(RuntimeError, match="no disk"):
        run(Target("one", broken, lambda: [b"x"], lambda rng, given: b"x"))


def test_an_input_that_cannot_be_made_is_told_and_the_others_are_tried() -> None:
    def mutate(rng: Random, given: Sequence[bytes]) -> bytes:
        return given[rng.randrange(2)]

    tally = run(Target("one", lambda folder: len, lambda: [b"x"], mutate), inputs=6)
    assert tally.tried == {"one": 6}
    [fault] = tally.faults["one"]
    assert fault.what.startswith("the fuzzer itself failed")
    assert b"IndexError" in fault.data


def test_a_run_ends_in_time_and_counts_what_was_tried() -> None:
    tally = run(target(lambda data: time.sleep(0.05)), inputs=2000, seconds=1.0)
    assert 0 < tally.count < 2000
    assert tally.wrong == 0


def test_a_process_without_a_core_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "HANG_S", 0.05)
    monkeypatch.setattr(trial, "AGAIN_S", 0.05)
    monkeypatch.setattr(Stopwatch, "seconds", lambda self: 0.0)
    assert (
        try_input(target(lambda data: time.sleep(0.2)), lambda data: time.sleep(0.2), b"") is None
    )


def test_faults_of_one_kind_are_told_once() -> None:
    tally = Tally()
    first = Fault("one", "KeyError in a.py:f < b.py:g: 'x'", b"", 1)
    assert tally.add(first)
    assert not tally.add(Fault("one", "KeyError in a.py:f < c.py:h: 'y'", b"", 2))
    assert tally.add(Fault("one", "KeyError in a.py:e: 'y'", b"", 3))
    assert tally.wrong == 2
