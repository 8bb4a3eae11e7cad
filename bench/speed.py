"""Speed: tokens a second against llama.cpp by turns, the NumPy reference alone, the first token."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bench.children import ROOT, BenchError, clean_environment, picoedge, worker
from bench.models import Models
from bench.report import Measured

PROMPT, GENERATE, REPEATS, N_CTX = 256, 64, 2, 1024
FIRST_PROMPT = (
    "The old lighthouse keeper climbed the spiral stairs each evening to light the lamp, and"
)
FIRST_PROMPT_TOKENS = 16

T = TypeVar("T")
Rates = dict[str, float]  # "prefill" and "decode": tokens a second, median of the repetitions


def compared(model: str, threads: int) -> Callable[[Models, int], list[Measured]]:
    """How to measure the decode and prefill rows of one model with so many threads."""

    def measure(models: Models, rounds: int) -> list[Measured]:
        sides = {
            "picoedge": lambda: our_rates(models.pack(model), threads),
            "llama.cpp": lambda: peer_rates(models.gguf(model), threads, flash=False),
            "llama.cpp flash": lambda: peer_rates(models.gguf(model), threads, flash=True),
        }
        taken = by_turns(sides, rounds)
        return [
            ratio_row(f"{kind}_{model}_{threads}t", kind, taken) for kind in ("decode", "prefill")
        ]

    return measure


def by_turns(sides: dict[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Each side's figures of every round; every second round runs in the opposite order."""
    taken: dict[str, list[T]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: -1 if i % 2 else 1]:
            taken[name].append(sides[name]())
    return taken


def seconds_of(rounds: Sequence[Mapping[str, Any]]) -> float:
    """The median of a side's seconds."""
    return statistics.median(float(each["seconds"]) for each in rounds)


def ratio_of_seconds(
    name: str, taken: dict[str, list[dict[str, Any]]], one: str, other: str, note: str
) -> Measured:
    """Median seconds of one side ÷ the other side's, by turns."""
    pairs = zip(taken[one], taken[other], strict=True)
    runs = tuple(float(a["seconds"]) / float(b["seconds"]) for a, b in pairs)
    return Measured(name, seconds_of(taken[one]) / seconds_of(taken[other]), runs, taken, note)


def ratio_row(name: str, kind: str, taken: dict[str, list[Rates]]) -> Measured:
    """Our median ÷ the median of whichever setting of llama.cpp is faster at this."""
    rates = {side: [rate[kind] for rate in rounds] for side, rounds in taken.items()}
    medians = {side: statistics.median(values) for side, values in rates.items()}
    best = max((side for side in medians if side != "picoedge"), key=lambda side: medians[side])
    runs = tuple(a / b for a, b in zip(rates["picoedge"], rates[best], strict=True))
    note = f"{medians['picoedge']:.1f} tok/s, {best} {medians[best]:.1f}"
    return Measured(name, medians["picoedge"] / medians[best], runs, {"tok_s": rates}, note)


def our_rates(pack: str, threads: int, *extra: str) -> Rates:
    """One process of `picoedge bench`."""
    report = picoedge(
        "bench", pack, "-p", str(PROMPT), "-n", str(GENERATE), "-r", str(REPEATS),
        "-t", str(threads), "-c", str(N_CTX), "-o", "json", *extra,
    ).json()  # fmt: skip
    return {
        "prefill": _median_of(report, f"pp{PROMPT}"),
        "decode": _median_of(report, f"tg{GENERATE}"),
    }


def _median_of(report: dict[str, Any], test: str) -> float:
    for line in report["rows"]:
        if line["name"] == test:
            return float(statistics.median(line["runs"]))
    raise BenchError(f"picoedge bench gave no row {test}")


def peer_rates(gguf: str, threads: int, *, flash: bool) -> Rates:
    """One process of llama.cpp, over the same tokens."""
    rates = worker(
        "peers_llama", job="speed", path=gguf, threads=threads, n_ctx=N_CTX, prompt=PROMPT,
        generate=GENERATE, repeats=REPEATS, flash=flash,
    )  # fmt: skip
    return {kind: statistics.median(values) for kind, values in rates.items()}


def numpy_decode(models: Models, rounds: int) -> list[Measured]:
    """Decoding with the NumPy reference, 2 threads."""
    reports = [
        picoedge(
            "bench", models.pack("smollm2"), "-p", "0", "-n", str(GENERATE), "-r", "1",
            "-t", "2", "-c", str(N_CTX), "--kernels", "numpy", "-o", "json",
        )
        for _ in range(max(1, rounds // 2))
    ]  # fmt: skip
    runs = tuple(_median_of(report.json(), f"tg{GENERATE}") for report in reports)
    peak = max(report.peak_rss_mb for report in reports)
    note = f"tok/s; peak resident {peak:.0f} MB"
    return [Measured("numpy_decode", statistics.median(runs), runs, {"peak_rss_mb": peak}, note)]


def first_token(models: Models, rounds: int) -> list[Measured]:
    """From starting a process to the first of its text, after a run that warms the page cache."""
    pack = models.pack("smollm2")
    shape = ["generate", pack, "-p", FIRST_PROMPT, "-n", "8", "--temperature", "0", "--raw"]
    counted = picoedge(*shape, "--json").json()["prompt_tokens"]
    if counted != FIRST_PROMPT_TOKENS:
        raise BenchError(f"the prompt has {counted} tokens, not {FIRST_PROMPT_TOKENS}")
    runs = tuple(seconds_to_first_byte(["-m", "picoedge", *shape]) for _ in range(rounds + 2))
    return [Measured("first_token_s", statistics.median(runs), runs, note="seconds")]


def seconds_to_first_byte(args: Sequence[str]) -> float:
    """From spawning this Python with `args` to the first byte on its stdout."""
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *args], bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=ROOT, env=clean_environment(os.environ, Path(scratch)),
        ) as child:  # fmt: skip
            assert child.stdout is not None
            first = child.stdout.read(1)
            seconds = time.perf_counter() - began
            _, said = child.communicate()
    if not first or child.returncode != 0:
        raise BenchError(f"no first token: {said.decode(errors='replace')[-400:]}")
    return seconds
