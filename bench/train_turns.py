"""Speed and memory of training: our side and PyTorch's, each in a process of its own, by turns."""

from __future__ import annotations

import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.children import ROOT, BenchError, clean_environment, worker
from bench.report import Measured
from bench.suite import Measure

LENGTH, ROWS = 256, {1: 4, 2: 8}  # tokens of a sequence; sequences of a step, by threads
# Ours, of two sequences each, and two a thread, so that adding gradients is measured too.
# (`picoedge train` takes four of 256 tokens for 5M, and two of 512 for 15M.)
MICRO_BATCHES = {1: 2, 2: 4}
TURN_STEPS = {"5m": 3, "15m": 2}
ANSWER_S = 300.0
AGREE = 1e-4  # losses of the first steps differ by rounding alone

Turn = list[tuple[float, float]]  # (wall, CPU) seconds of each step


class Side:
    """A process that takes training steps when asked. A context; `peak_mb` is known after it."""

    def __init__(self, name: str, module: str, request: Mapping[str, Any]) -> None:
        self.name, self.peak_mb = name, 0.0
        self._module, self._request = module, request

    def __enter__(self) -> Side:
        self._files = ExitStack()
        scratch = self._files.enter_context(
            tempfile.TemporaryDirectory(prefix="picoedge-bench-", ignore_cleanup_errors=True)
        )
        self._err = self._files.enter_context(Path(scratch, "err").open("w+b"))
        self._child = subprocess.Popen(
            [sys.executable, "-m", f"bench.{self._module}"], bufsize=0, cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._err,
            env=clean_environment(os.environ, Path(scratch)),
        )  # fmt: skip
        try:
            self.first_losses: list[float] = self._ask(json.dumps(self._request))
        except BaseException:
            self._end(kill=True)
            raise
        return self

    def turn(self, steps: int) -> Turn:
        """The (wall, CPU) seconds of some more steps."""
        return [(wall, cpu) for wall, cpu in self._ask(str(steps))]

    def _ask(self, line: str) -> Any:
        """The answer to a line. Raises BenchError where the process ends or says nothing."""
        stdin, stdout = self._child.stdin, self._child.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(line.encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                if not select.select([stdout], [], [], ANSWER_S)[0]:
                    self._fail(f"said nothing for {ANSWER_S:.0f} s")
                more = os.read(stdout.fileno(), 1 << 16)
                if not more:
                    self._fail("ended")
                answer += more
        except BrokenPipeError:
            self._fail("ended")
        return json.loads(answer)

    def _fail(self, how: str) -> None:
        self._err.seek(0)
        said = self._err.read().decode(errors="replace").strip()[-600:]
        raise BenchError(f"the process of {self.name} {how}: {said}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        where: TracebackType | None,
    ) -> None:  # fmt: skip
        self._end(kill=kind is not None)
        if kind is None and self._child.returncode != 0:
            raise BenchError(f"the process of {self.name} ended with {self._child.returncode}")

    def _end(self, *, kill: bool) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        if kill:
            os.kill(self._child.pid, signal.SIGKILL)  # Popen.kill would take the exit status
        _, status, usage = os.wait4(self._child.pid, 0)
        self._child.returncode = os.waitstatus_to_exitcode(status)
        self.peak_mb = usage.ru_maxrss / 1024
        self._child.stdout.close()
        self._files.close()


@dataclass(frozen=True)
class Taken:
    """What turns gave: (wall, CPU) seconds of each side's steps by round; peaks of memory."""

    turns: dict[str, list[Turn]]
    peaks_mb: dict[str, float]

    def ratios(self, one: str, other: str, *, cpu: bool = False) -> tuple[float, ...]:
        """By round: the other's median seconds ÷ the one's, which is the ratio of tokens/s."""
        return tuple(
            median_seconds(b, cpu=cpu) / median_seconds(a, cpu=cpu)
            for a, b in zip(self.turns[one], self.turns[other], strict=True)
        )

    def seconds(self, side: str) -> float:
        """A side's median seconds a step."""
        return statistics.median(wall for turn in self.turns[side] for wall, _ in turn)


def median_seconds(turn: Turn, *, cpu: bool = False) -> float:
    """Median of a turn's steps."""
    return statistics.median(step[cpu] for step in turn)


def by_turns(sides: Sequence[Side], rounds: int, steps: int) -> Taken:
    """All sides' steps, some of each by turns; every second round in the opposite order."""
    turns: dict[str, list[Turn]] = {side.name: [] for side in sides}
    with ExitStack() as running:
        for side in sides:
            running.enter_context(side)
        agree({side.name: side.first_losses for side in sides})
        for i in range(rounds):
            for side in sides[:: -1 if i % 2 else 1]:
                turns[side.name].append(side.turn(steps))
    return Taken(turns, {side.name: side.peak_mb for side in sides})


def agree(losses: Mapping[str, Sequence[float]]) -> None:
    """Raises BenchError where sides do not have the same losses within rounding."""
    (first, right), *others = losses.items()
    for name, theirs in others:
        for one, other in zip(right, theirs, strict=True):
            if not abs(one - other) <= AGREE * abs(one):
                raise BenchError(f"{name} has losses {theirs}, {first} has {right}: not one model")


def quickest_head(model: str, threads: int) -> tuple[str, dict[str, float]]:
    """The form of PyTorch's head that is quickest here, and the seconds of each."""
    taken: dict[str, float] = worker(
        "train_torch", job="head", model=model, threads=threads, rows=ROWS[threads], length=LENGTH
    )
    return min(taken, key=lambda head: taken[head]), taken


def torch_side(model: str, threads: int, head: str, *, compiled: bool = False) -> Side:
    """PyTorch's process."""
    request = {"job": "speed", "model": model, "threads": threads, "rows": ROWS[threads]}
    request |= {"length": LENGTH, "head": head, "compiled": compiled}
    return Side("compile" if compiled else "torch", "train_torch", request)


def our_side(model: str, threads: int, mode: str) -> Side:
    """Our process; mode: `exact`, `fast` or `numpy`."""
    request = {"job": "speed", "model": model, "threads": threads, "rows": ROWS[threads]}
    request |= {"length": LENGTH, "mode": mode}
    request |= {"micro_batches": None if mode == "numpy" else MICRO_BATCHES[threads]}
    return Side(mode, "train_ours", request)


def against_torch(model: str, threads: int, modes: Sequence[str] = ("exact", "fast")) -> Measure:
    """How to measure the speed rows of one model with so many threads, and its memory."""

    def measure(prepared: Any, rounds: int) -> list[Measured]:
        head, heads = quickest_head(model, threads)
        sides = [torch_side(model, threads, head), *(our_side(model, threads, m) for m in modes)]
        taken = by_turns(sides, 2 * rounds, TURN_STEPS[model])
        raw = {"head": heads, "peaks_mb": taken.peaks_mb, "turns": taken.turns}
        rows = [
            speed_row(row_name(model, threads, mode), mode, taken, ROWS[threads] * LENGTH, raw)
            for mode in modes
        ]
        if (model, threads) == ("15m", 1):
            rows.append(memory_row(taken.peaks_mb))
        return rows

    return measure


def row_name(model: str, threads: int, mode: str) -> str:
    """`exact_5m_1t`; of NumPy `numpy_train_5m`."""
    return f"numpy_train_{model}" if mode == "numpy" else f"{mode}_{model}_{threads}t"


def speed_row(
    name: str, side: str, taken: Taken, tokens: int, raw: dict[str, Any], peer: str = "torch"
) -> Measured:
    """Tokens a second of a side ÷ its peer's: the median of the rounds' ratios."""
    ratios, cpu = (taken.ratios(side, peer, cpu=cpu) for cpu in (False, True))
    note = (
        f"{tokens / taken.seconds(side):.0f} tok/s, {peer} {tokens / taken.seconds(peer):.0f};"
        f" by CPU time {statistics.median(cpu):.3g}"
    )
    return Measured(name, statistics.median(ratios), ratios, raw, note)


def memory_row(peaks_mb: Mapping[str, float]) -> Measured:
    """Peak resident, exact ÷ PyTorch's."""
    value = peaks_mb["exact"] / peaks_mb["torch"]
    note = f"{peaks_mb['exact']:.0f} MB, torch {peaks_mb['torch']:.0f}"
    return Measured("train_memory_15m", value, (value,), dict(peaks_mb), note)


def compiled(model: str, threads: int) -> Measure:
    """How to measure `torch.compile` against eager mode, to be seen beside our rows."""

    def measure(prepared: Any, rounds: int) -> list[Measured]:
        head, _ = quickest_head(model, threads)
        sides = [torch_side(model, threads, head, compiled=each) for each in (False, True)]
        taken = by_turns(sides, rounds, TURN_STEPS[model])
        name, tokens = f"compile_{model}_{threads}t", ROWS[threads] * LENGTH
        return [speed_row(name, "compile", taken, tokens, {"turns": taken.turns})]

    return measure
