"""Runs of `picoedge train` that are killed at random moments, resumed, and end with its bits."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.children import ROOT, BenchError, clean_environment, picoedge
from bench.report import Measured

KILLS = 5
TEXT_BYTES = 300_000
SETTINGS = (
    "--preset", "1m", "--steps", "60", "--batch-size", "8", "--micro-batch", "1",
    "--length", "64", "--save-every", "5", "--seed", "1",
)  # fmt: skip


def resume_bits(prepared: Any, rounds: int) -> list[Measured]:
    """How many of KILLS runs, each killed once, end with the weights of the undisturbed one."""
    moments = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        text = Path(scratch, "library.txt")
        text.write_bytes(sample_text())
        whole = Path(scratch, "whole.pico")
        began = time.perf_counter()
        picoedge("train", "--text", str(text), "--out", str(whole), *SETTINGS)
        seconds = time.perf_counter() - began
        due, same, told = weights_hash(whole), 0, []
        for number in range(KILLS):
            share = moments.uniform(0.1, 0.95)
            out = Path(scratch, f"killed-{number}.pico")
            first = ["--text", str(text), "--out", str(out), *SETTINGS]
            kill_after(["train", *first], share * seconds)
            has_run = out.with_name(f"{out.stem}.run").joinpath("config.toml").exists()
            picoedge("train", *(["--resume", "--out", str(out)] if has_run else first))
            same += weights_hash(out) == due
            told.append(share * seconds)
    note = f"killed at {', '.join(f'{after:.1f}' for after in told)} of {seconds:.1f} s"
    return [Measured("resume_bits", same, (same,), {"killed_s": told}, note)]


def sample_text() -> bytes:
    """The start of Python's library, in whole lines."""
    from bench.train_text import library_text

    return library_text()[:TEXT_BYTES].rpartition(b"\n")[0].decode(errors="ignore").encode()


def weights_hash(pack: Path) -> str:
    """Of all tensor files of a pack."""
    files = sorted(pack.glob("*.safetensors"))
    if not files:
        raise BenchError(f"{pack.name} has no weights")
    sums = hashlib.blake2b(digest_size=16)
    for file in files:
        sums.update(file.name.encode() + file.read_bytes())
    return sums.hexdigest()


def kill_after(args: list[str], seconds: float) -> None:
    """Start a command line and kill (-9) its process after some time."""
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-", ignore_cleanup_errors=True) as home:
        child = subprocess.Popen(
            [sys.executable, "-m", "picoedge", *args], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=clean_environment(os.environ, Path(home)),
        )  # fmt: skip
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
