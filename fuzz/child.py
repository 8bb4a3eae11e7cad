"""A process that tries some inputs of a target: what ends or hangs it is found as well.

It is a fork of the parent, which has loaded the parsers. It writes each input's number to a
shared page first; the parent makes a lost input again from its number.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuzz.target import EXTRA_BYTES, Target, make_input
from fuzz.trial import Fault, Stopwatch, memory_faults, reset_peak, try_input
from picoedge.host.resources import rss_bytes

NATIVE_HANG_S = 30.0  # without a new input: nothing in Python can end it any more
START_S = 120.0  # until the first input: samples are made, and others may keep the machine busy
EACH = 32  # inputs between two looks at the memory
MOST_BYTES = 6 << 30  # of address space: an allocation beyond it fails at once
NONE_YET = (1 << 64) - 1
OWN_FAULT = 90  # the exit code


@dataclass(frozen=True)
class Part:
    """Some inputs of a target, by their numbers."""

    target: Target
    seed: int
    numbers: range

    def after(self, number: int) -> Part:
        """The inputs behind that one."""
        return Part(self.target, self.seed, range(number + 1, self.numbers.stop))


class Child:
    """The parent's side: a process that tries a part, and what it has found."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self._page = mmap.mmap(-1, 8)
        self._page[:] = NONE_YET.to_bytes(8, "little")
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_memory_folder()))
        self._found, self._log = self._folder / "found", self._folder / "log"
        self._pid = os.fork()
        if self._pid == 0:
            _be_child(part, self._page, self._folder, self._found, self._log)
        self.handle = os.pidfd_open(self._pid)
        self._seen, self._since = self._number(), Stopwatch(self._pid)
        self._status: int | None = None

    def _number(self) -> int:
        """The number of the input that is tried, or NONE_YET."""
        return int.from_bytes(self._page[:], "little")

    @property
    def tried(self) -> int:
        """How many inputs were tried, without the one under way."""
        number = self._number()
        return 0 if number == NONE_YET else number - self.part.numbers.start

    def has_ended(self) -> bool:
        """Whether the process has; a hanging process is ended."""
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = status
            elif self._hangs():
                self.kill()
        return self._status is not None

    def _hangs(self) -> bool:
        number = self._number()
        if number != self._seen:
            self._seen, self._since = number, Stopwatch(self._pid)
        most = START_S if number == NONE_YET else NATIVE_HANG_S
        return self._since.seconds() > most

    def kill(self) -> None:
        """End it now."""
        if self._status is None:
            os.kill(self._pid, signal.SIGKILL)
            _, self._status = os.waitpid(self._pid, 0)

    def close(self, *, is_stopped: bool = False) -> tuple[list[Fault], Part | None]:
        """What an ended process found, and what it left untried because an input ended it.

        `is_stopped`: it was ended from outside, which is no fault.
        """
        os.close(self.handle)
        number, status = self._number(), self._status or 0
        log = self._log.read_text("utf-8", "replace") if self._log.exists() else ""
        lines = self._found.read_text().splitlines() if self._found.exists() else []
        shutil.rmtree(self._folder, ignore_errors=True)
        faults = [self._fault(**json.loads(line)) for line in lines if line.endswith("}")]
        if status == 0 or is_stopped:
            return faults, None
        if number == NONE_YET:
            raise RuntimeError(f"the fuzzer of {self.part.target.name} failed: {log[-2000:]}")
        if os.waitstatus_to_exitcode(status) == OWN_FAULT:  # no input can be made of that number
            what = f"the fuzzer itself failed: {log.strip()[-200:]}"
            faults.append(Fault(self.part.target.name, what, log.encode(), number))
        else:
            faults.append(self._fault(_ending(status), number))
        return faults, self.part.after(number)

    def _fault(self, what: str, number: int) -> Fault:
        target = self.part.target
        data = make_input(target, list(target.samples()), self.part.seed, number)
        return Fault(target.name, what, data, number)


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        return "hangs outside Python, or takes all memory"
    return f"the process ended with {signal.Signals(-code).name if code < 0 else code}"


def _memory_folder() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


# -- the child's side ----------------------------------------------------------------------------


def _be_child(part: Part, page: mmap.mmap, folder: Path, found: Path, log: Path) -> None:
    """Never returns: what the parent left open is not the child's to close."""
    code = OWN_FAULT
    try:
        os.environ["RUST_BACKTRACE"] = "0"  # to write one takes 50 MB
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        file = os.open(log, os.O_CREAT | os.O_WRONLY, 0o600)
        for stream in (1, 2):
            os.dup2(file, stream)
        with found.open("w", buffering=1) as faults:
            for fault in _try_all(part, page, folder / "files"):
                print(json.dumps({"what": fault.what, "number": fault.number}), file=faults)
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        sys.stdout.flush()
        os._exit(code)


def _try_all(part: Part, page: mmap.mmap, folder: Path) -> Iterator[Fault]:
    target = part.target
    samples = list(target.samples())
    folder.mkdir()
    run = target.open(folder)
    for sample in samples * 2:  # what the first inputs load stays
        try_input(target, run, sample)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    first = before = reset_peak()
    batch: list[tuple[int, bytes]] = []
    for number in part.numbers:
        page[:] = number.to_bytes(8, "little")
        data = make_input(target, samples, part.seed, number)
        batch.append((number, data))
        fault = try_input(target, run, data, number)
        if fault is not None:
            yield fault
        if len(batch) == EACH:
            yield from memory_faults(target, run, before, batch)
            batch, before = [], reset_peak()
    yield from memory_faults(target, run, before, batch)
    kept = rss_bytes() - first
    if kept > EXTRA_BYTES:
        what = f"leak: {kept >> 20} MB kept after {len(part.numbers)} inputs"
        yield Fault(target.name, what, b"", part.numbers.stop - 1)
    page[:] = part.numbers.stop.to_bytes(8, "little")
