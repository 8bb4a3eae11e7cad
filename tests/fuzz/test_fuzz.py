"""Fuzzers: sound samples are taken, inputs that were faults stay refused, new ones are tried."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fuzz.coverage_of import PACKAGE, lines_of
from fuzz.target import Target, make_input
from fuzz.targets import TARGETS
from fuzz.trial import Fault, try_input
from picoedge.errors import PicoedgeError

CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus"
EACH = 40  # mutated inputs of each target; `make fuzz` tries many more


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_and_messages_are_taken_or_refused(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    samples = list(target.samples())
    run = target.open(tmp_path)
    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    made = [make_input(target, samples, 0, number) for number in range(EACH)]
    faults = [try_input(target, run, data) for data in [*samples, *kept, *made]]
    assert [fault.what for fault in faults if fault is not None] == []


def test_each_target_takes_a_sound_sample() -> None:
    for target in TARGETS.values():
        with tempfile.TemporaryDirectory() as folder:
            assert any(_is_taken(target, Path(folder))), target.name


def _is_taken(target: Target, folder: Path) -> list[bool]:
    run, taken = target.open(folder), []
    for sample in target.samples():
        try:
            run(sample)
        except (PicoedgeError, *target.also):
            taken.append(False)
        else:
            taken.append(True)
    return taken


def test_lines_that_count_are_of_functions_that_exist() -> None:
    for target in TARGETS.values():
        for module in target.modules:
            path, _, names = module.partition(":")
            assert lines_of(PACKAGE / path, names)
    with pytest.raises(ValueError, match=r"hub\.py has no function no_such"):
        lines_of(PACKAGE / "registry/hub.py", "choose_files,no_such")


def test_an_error_that_is_not_ours_is_a_fault() -> None:
    def run(data: bytes) -> None:
        {}[data]  # type: ignore[index]

    fault = try_input(_target(), run, b"x", 3)
    assert isinstance(fault, Fault)
    assert (fault.number, fault.what.split(" in ")[0]) == (3, "KeyError")


def test_a_panic_of_a_library_is_a_fault() -> None:
    def run(data: bytes) -> None:
        raise BaseException("panicked")

    fault = try_input(_target(), run, b"x")
    assert fault is not None
    assert fault.what.startswith("BaseException")


def test_an_input_that_is_refused_is_no_fault() -> None:
    def run(data: bytes) -> None:
        raise PicoedgeError("no", "get it again")

    assert try_input(_target(), run, b"x") is None


def test_inputs_of_a_seed_are_the_same_in_any_process() -> None:
    target = TARGETS["gguf"]
    samples = list(target.samples())
    code = (
        "import sys; from fuzz.targets import TARGETS as t\n"
        "from fuzz.target import make_input as m\n"
        "sys.stdout.buffer.write(m(t['gguf'], list(t['gguf'].samples()), 5, 9))"
    )
    other = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout
    assert make_input(target, samples, 5, 9) == other


def test_the_alarm_is_off_after_an_input() -> None:
    try_input(_target(), lambda data: None, b"x")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def _target() -> Target:
    return Target(
        "one", lambda folder: lambda data: None, lambda: [b"x"], lambda rng, given: given[0]
    )
