"""Tries inputs on a target, in processes of their own: what ends or hangs one is found as well.

A child tries the inputs of its range, and writes each one's number to a shared page first. The
parent makes a lost input again from its number.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fuzz.target import EXTRA_BYTES, HANG_S, Target, make_input
from picoedge.errors import PicoedgeError
from picoedge.host.resources import peak_rss_bytes, rss_bytes

NATIVE_HANG_S = 30.0  # without a new input: nothing in Python can end it any more
START_S = 120.0  # until the first input: samples are made, and others may keep the machine busy
LOOK_S = 0.2
EACH = 32  # inputs between two looks at the memory
MOST_BYTES = 6 << 30  # of address space: an allocation beyond it fails at once
LONGEST_TRACE = 6


@dataclass(frozen=True)
class Fault:
    """An input that its parser failed on. `what` names the error and where it was raised."""

    target: str
    what: str
    data: bytes
    number: int


class HangError(BaseException):
    """An input took more than HANG_S."""


def try_input(target: Target, run: object, data: bytes, number: int = -1) -> Fault | None:
    """The fault of one input, if any."""
    assert callable(run)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    began = time.monotonic()
    try:
        run(data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also a panic of a library, which is no Exception
        if not isinstance(error, (PicoedgeError, *target.also)):
            return Fault(target.name, _what(error), data, number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if time.monotonic() - began >= HANG_S:  # the parser took the alarm for an error of the file
        return Fault(target.name, f"HangError: more than {HANG_S:g} s", data, number)
    return None


def _what(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{Path(f.filename).name}:{f.name}" for f in frames if "picoedge" in f.filename]
    where = " < ".join(reversed(ours[-LONGEST_TRACE:]))
    return f"{type(error).__name__} in {where}: {str(error)[:120]}"


def _on_alarm(number: int, frame: FrameType | None) -> None:
    raise HangError(f"more than {HANG_S:g} s")


def run_child(target: Target, seed: int, numbers: range, page: Path, seconds: float) -> None:
    """Try inputs, and print faults as lines of JSON; the number tried is on the page."""
    signal.signal(signal.SIGALRM, _on_alarm)
    with page.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 8)
    samples = list(target.samples())
    end_s = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(dir=page.parent) as folder:
        run = target.open(Path(folder))
        for sample in samples * 2:  # what the first inputs load stays
            try_input(target, run, sample)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
        before = _reset_peak()
        for number in numbers:
            shared[:] = number.to_bytes(8, "little")
            fault = try_input(target, run, make_input(target, samples, seed, number), number)
            if fault is not None:
                _print(fault)
            if number % EACH == EACH - 1:
                if peak_rss_bytes() - before > EXTRA_BYTES:
                    batch = range(max(numbers.start, number - EACH + 1), number + 1)
                    inputs = [make_input(target, samples, seed, each) for each in batch]
                    for each, data in zip(batch, inputs, strict=True):
                        if (grown := _growth(run, target, data)) > 3 * len(data) + EXTRA_BYTES:
                            _print(Fault(target.name, f"{grown >> 20} MB of memory", data, each))
                before = _reset_peak()
            if time.monotonic() > end_s:
                break


def _growth(run: object, target: Target, data: bytes) -> int:
    """Bytes of memory that an input takes, at its highest."""
    before = _reset_peak()
    try_input(target, run, data)
    return peak_rss_bytes() - before


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return rss_bytes()


def _print(fault: Fault) -> None:
    print(json.dumps({"what": fault.what, "number": fault.number}), flush=True)


def run_target(
    target: Target, seed: int, numbers: range, seconds: float
) -> tuple[int, list[Fault]]:
    """Try these inputs for at most `seconds`; how many were tried, and one fault of each kind."""
    faults: dict[str, Fault] = {}
    samples, tried, end_s = list(target.samples()), 0, time.monotonic() + seconds
    while numbers and (left_s := end_s - time.monotonic()) > 0:
        last, lines, ended = _one_child(target, seed, numbers, left_s)
        for line in lines:
            found = json.loads(line)
            data = make_input(target, samples, seed, found["number"])
            faults.setdefault(
                kind_of(found["what"]), Fault(target.name, found["what"], data, found["number"])
            )
        done = max(0, last - numbers.start + 1)
        if ended:
            data = make_input(target, samples, seed, last)
            faults.setdefault(ended, Fault(target.name, ended, data, last))
        tried += done
        if not ended:
            break
        numbers = range(last + 1, numbers.stop)
    return tried, list(faults.values())


def kind_of(what: str) -> str:
    """The error and the function that raised it: faults of one kind are told once."""
    return "memory" if what.endswith("of memory") else what.partition(": ")[0].partition(" < ")[0]


def _one_child(
    target: Target, seed: int, numbers: range, seconds: float
) -> tuple[int, list[str], str]:
    """The last number tried, the lines printed, and how the process ended if not by itself."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        page, out = Path(name) / "page", Path(name) / "out"
        page.write_bytes((1 << 64).__sub__(1).to_bytes(8, "little"))
        command = [
            sys.executable,
            "-m",
            "fuzz.child",
            target.name,
            str(seed),
            str(numbers.start),
            str(numbers.stop),
            str(page),
            str(seconds),
        ]
        with out.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE)
        try:
            ended = _watch(process, page)
        finally:
            if process.poll() is None:
                process.kill()
            _, stderr = process.communicate()
        last = int.from_bytes(page.read_bytes(), "little")
        if last >> 63:
            raise RuntimeError(f"no input of {target.name} was tried: {stderr.decode()[-2000:]}")
        return last, out.read_text().splitlines(), ended


def _watch(process: subprocess.Popen[bytes], page: Path) -> str:
    """Wait for the end of a child; "" where it ended by itself."""
    number, since_s = b"", time.monotonic()
    while True:
        try:
            code = process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            seen = page.read_bytes()
            if seen != number:
                number, since_s = seen, time.monotonic()
            elif time.monotonic() - since_s > (START_S if seen[7] >> 7 else NATIVE_HANG_S):
                process.kill()
                return "hangs outside Python"
            continue
        return (
            ""
            if code == 0
            else f"the process ended: {signal.Signals(-code).name if code < 0 else code}"
        )
