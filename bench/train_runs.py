"""Whether training is right: gradients, losses beside PyTorch's, and the bits of a run."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench import train_levels
from bench.children import BenchError, worker
from bench.report import Measured

GRADIENTS = ("1m", "5m", "15m", "40m", "llama", "qwen2", "qwen3", "gemma3")
GRADIENT_ROWS, GRADIENT_LENGTH = 2, 70  # more than a block of queries, and no multiple of one
BITS = {"model": "1m", "steps": 20, "micro_batches": 2, "length": 64}
FOLLOWED = {"model": "0.4m", "steps": 200, "rows": 4, "length": 128, "held_out": 64}
FOLLOWED_BYTES = 1 << 20
CURVE = {"model": "5m", "rows": 8, "length": 256, "held_out": 128}
CURVE_TOKENS, CURVE_IDS, CURVE_SEEDS = 2_000_000, 2_600_000, (0, 1, 2)


def gradient_error(prepared: Any, rounds: int) -> list[Measured]:
    """The worst tensor of all presets and architectures, in f32 against autograd in f64."""
    found: dict[str, dict[str, float]] = worker(
        "train_torch", job="gradient_error", models=GRADIENTS, rows=GRADIENT_ROWS,
        length=GRADIENT_LENGTH,
    )  # fmt: skip
    worst = {
        model: max(errors.items(), key=lambda each: each[1]) for model, errors in found.items()
    }
    model = max(worst, key=lambda each: worst[each][1])
    note = f"{worst[model][0]} of {model}"
    runs = tuple(error for _, error in worst.values())
    return [Measured("gradient_error", worst[model][1], runs, dict(worst), note)]


def ids_in(folder: str, vocabulary: int, most: int) -> str:
    """A file of ids of the text that every Python brings."""
    into = str(Path(folder, f"ids-{vocabulary}.npy"))
    worker("train_text", vocabulary=vocabulary, most=most, into=into)
    return into


def loss_follows(prepared: Any, rounds: int) -> list[Measured]:
    """Held-out losses of a small model after the same steps, ours beside PyTorch's."""
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as folder:
        ids, course = ids_in(folder, 256, FOLLOWED_BYTES), {**FOLLOWED, "seed": 0}
        ours, theirs = (
            float(worker(side, job="course", ids=ids, threads=1, course=course))
            for side in ("train_ours", "train_torch")
        )
    value = abs(ours - theirs) / theirs
    note = f"held-out loss {ours:.7f}, torch {theirs:.7f}"
    return [Measured("loss_follows", value, (value,), {}, note)]


def loss_curve(prepared: Any, rounds: int) -> list[Measured]:
    """Held-out loss after CURVE_TOKENS tokens, ours - PyTorch's, the mean of some seeds."""
    tokens: int = prepared.curve_tokens or CURVE_TOKENS
    steps = tokens // (CURVE["rows"] * CURVE["length"])  # type: ignore[operator]
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as folder:
        ids = ids_in(folder, 4096, CURVE_IDS)
        pairs = []
        for seed in CURVE_SEEDS:
            course = {**CURVE, "seed": seed, "steps": steps}
            pairs.append([
                float(worker(side, job="course", ids=ids, threads=2, course=course))
                for side in ("train_ours", "train_torch")
            ])  # fmt: skip
    runs = tuple(ours - theirs for ours, theirs in pairs)
    note = "held-out losses " + ", ".join(f"{a:.4f} ({b:.4f})" for a, b in pairs)
    return [Measured("loss_curve", abs(statistics.mean(runs)), runs, {"tokens": tokens}, note)]


def same_bits(prepared: Any, rounds: int) -> list[Measured]:
    """Different hashes of the weights over threads and instruction sets."""
    hashes: dict[str, str] = {}
    for threads in (1, 2):
        hashes[f"{threads} threads"] = worker("train_ours", job="bits", threads=threads, **BITS)
    by_level, left_out = train_levels.hashes(BITS)
    hashes |= by_level
    if not hashes:
        raise BenchError("no level could be run")
    count = len(set(hashes.values()))
    note = f"{', '.join(hashes)}; not run: {', '.join(left_out) or 'none'}"
    return [Measured("same_bits", count, (count,), hashes, note)]
