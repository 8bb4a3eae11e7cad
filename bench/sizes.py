"""Bytes: of a running process beside llama.cpp's, of a pack, and of packing."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import texts
from bench.children import BenchError, Finished, picoedge, run, worker
from bench.models import Models
from bench.report import Measured

PROMPT_TOKENS, GENERATE, N_CTX, THREADS = 1000, 8, 1024, 2


def memory(models: Models, rounds: int) -> list[Measured]:
    """Peak resident memory after 1,000 prompt tokens ÷ llama.cpp's, each in its own process."""
    text = worker(
        "peers_llama", job="prefix", path=models.gguf("smollm2"),
        text=texts.PERPLEXITY_FILE.read_text(), n_tokens=PROMPT_TOKENS,
    )  # fmt: skip
    ours, plain, flash = [], [], []
    for _ in range(max(1, rounds // 2)):
        ours.append(_peak(_our_process(models.pack("smollm2"), text)))
        plain.append(_peak(_peer_process(models.gguf("smollm2"), text, flash=False)))
        flash.append(_peak(_peer_process(models.gguf("smollm2"), text, flash=True)))
    peer = min(plain, flash, key=statistics.median)  # the peer in its leaner setting
    value = statistics.median(ours) / statistics.median(peer)
    runs = tuple(a / b for a, b in zip(ours, peer, strict=True))
    raw = {"picoedge_mb": ours, "llama.cpp_mb": plain, "llama.cpp flash_mb": flash}
    note = f"{statistics.median(ours):.0f} MB, llama.cpp {statistics.median(peer):.0f} MB"
    return [Measured("memory_smollm2", value, runs, raw, note)]


def _our_process(pack: str, text: str) -> Finished:
    return picoedge(
        "generate", pack, "-p", text, "-n", str(GENERATE), "-c", str(N_CTX), "-t", str(THREADS),
        "--temperature", "0", "--raw", "--ignore-eos", "--json",
    )  # fmt: skip


def _peer_process(gguf: str, text: str, *, flash: bool) -> Finished:
    request = {
        "job": "generate", "path": gguf, "threads": THREADS, "text": text, "n": GENERATE,
        "n_ctx": N_CTX, "flash": flash,
    }  # fmt: skip
    return run([sys.executable, "-m", "bench.peers_llama"], stdin=json.dumps(request))


def _peak(finished: Finished) -> float:
    """The peak of a process that did what it was asked to do."""
    report = finished.json()
    done = (report["prompt_tokens"], len(report["tokens"]))
    if done != (PROMPT_TOKENS, GENERATE):
        raise BenchError(f"prompt and answer of {done} tokens, not {(PROMPT_TOKENS, GENERATE)}")
    return finished.peak_rss_mb


def pack_size(model: str) -> Callable[[Models, int], list[Measured]]:
    """How to measure the bytes of every file of a pack ÷ the tensor bytes of its GGUF."""

    def measure(models: Models, rounds: int) -> list[Measured]:
        sizes = {file.name: file.stat().st_size for file in Path(models.pack(model)).iterdir()}
        tensors: int = worker("ours", job="tensor_bytes", source=models.gguf(model))
        alone = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
        raw: dict[str, Any] = {
            "pack_bytes": sum(sizes.values()),
            "pack_tensor_file_bytes": alone,
            "gguf_tensor_bytes": tensors,
            "gguf_bytes": Path(models.gguf(model)).stat().st_size,
        }
        value = raw["pack_bytes"] / tensors
        note = f"{alone / tensors:.4f} for the tensor files alone"
        return [Measured(f"pack_{model}", value, (value,), raw, note)]

    return measure


def pack_peak(models: Models, rounds: int) -> list[Measured]:
    """Peak resident memory of packing Gemma, tokenizer and all."""
    finished = models.packing("gemma")
    value = finished.peak_rss_mb
    note = f"MB; {finished.wall_s:.1f} s"
    return [Measured("pack_peak_mb", value, (value,), {"wall_s": finished.wall_s}, note)]
