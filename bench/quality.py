"""Quality of the model as computed: perplexity, and top-1 along a reference's texts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from bench import texts
from bench.children import BenchError, picoedge, worker
from bench.models import Models
from bench.report import Measured

THREADS = 2  # for long texts; short ones are faster with one, on both peers
CHECK_TOKENS = 512
CHECK_WITHIN = 0.03


def perplexity(model: str) -> Callable[[Models, int], list[Measured]]:
    """How to measure perplexity ÷ llama.cpp's over the same 2,048 ids."""

    def measure(models: Models, rounds: int) -> list[Measured]:
        text, count = texts.PERPLEXITY_FILE, texts.PERPLEXITY_TOKENS
        gguf, pack = models.gguf(model), models.pack(model)
        peer = _peer_perplexity(gguf, count)
        ids = worker("ours", job="tokenize", pack=pack, text=text.read_text())[:count]
        if ids != peer["ids"] or len(ids) != count:
            raise BenchError(f"the first {count} token ids differ from llama.cpp's")
        ours = picoedge(
            "perplexity", pack, "--file", str(text), "--tokens", str(count), "--json"
        ).json()
        value = ours["perplexity"] / peer["perplexity"]
        raw = {"picoedge": ours["perplexity"], "llama.cpp": peer["perplexity"], "tokens": count}
        note = f"{ours['perplexity']:.4f}, llama.cpp {peer['perplexity']:.4f}"
        return [Measured(f"ppl_{model}", value, (value,), raw, note)]

    return measure


def top1(model: str) -> Callable[[Models, int], list[Measured]]:
    """How to measure the share of clear positions where we choose as the reference does."""

    def measure(models: Models, rounds: int) -> list[Measured]:
        gguf, pack = models.gguf(model), models.pack(model)
        prompts = worker("peers_llama", job="tokenize", path=gguf, texts=list(texts.PROMPTS))
        check = _peer_perplexity(gguf, CHECK_TOKENS)
        with tempfile.TemporaryDirectory(prefix="picoedge-reference-") as folder:
            reference = worker(
                "peers_torch", path=gguf, threads=1, prompts=prompts,
                n=texts.PROMPT_TOKENS, folder=folder, check=check["ids"],
            )  # fmt: skip
            _check_reference(reference["perplexity"], check["perplexity"])
            ours = worker("ours", job="agreement", pack=pack, threads=THREADS, reference=folder)
            peer = worker("peers_llama", job="agreement", path=gguf, threads=1, reference=folder)
        raw = {
            "picoedge": ours,
            "llama.cpp": peer,
            "reference": {**reference, "llama.cpp": check["perplexity"]},
        }
        note = (
            f"{ours['wide']} of {ours['positions']} positions are clear; mean KL "
            f"{ours['mean_kl']:.5f}, llama.cpp {peer['mean_kl']:.5f} (top-1 {peer['top1']:.4f})"
        )
        return [Measured(f"top1_{model}", ours["top1"], (ours["top1"],), raw, note)]

    return measure


def _peer_perplexity(gguf: str, count: int) -> Any:
    return worker(
        "peers_llama", job="perplexity", path=gguf, threads=THREADS,
        text=texts.PERPLEXITY_FILE.read_text(), n_tokens=count,
    )  # fmt: skip


def _check_reference(perplexity: float, peer: float) -> None:
    """A reference built wrongly would be far from llama.cpp on any text."""
    if abs(perplexity / peer - 1) > CHECK_WITHIN:
        raise BenchError(f"the reference's perplexity is {perplexity:.3f}, llama.cpp's {peer:.3f}")
