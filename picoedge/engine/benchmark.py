"""Speed in the rows of llama-bench, and perplexity."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from picoedge.errors import ModelError, UsageError
from picoedge.kernels.arrays import F32

if TYPE_CHECKING:
    from picoedge.engine.session import LanguageModel
    from picoedge.model.transformer import Transformer


@dataclass(frozen=True)
class BenchRow:
    """Tokens a second in each repetition of one test, named as in llama-bench."""

    name: str  # pp256: a prompt of 256 tokens; tg64: 64 tokens one by one
    runs: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the repetitions."""
        return statistics.fmean(self.runs)

    @property
    def sd(self) -> float:
        """Sample standard deviation; 0 for one repetition."""
        return statistics.stdev(self.runs) if len(self.runs) > 1 else 0.0


def run_bench(
    model: LanguageModel,
    vocab_size: int,
    *,
    n_prompt: int,
    n_generate: int,
    repeats: int,
) -> list[BenchRow]:
    """A row for the prompt and one for generation, each from an empty cache, after a warm-up.

    Tokens are random, as in llama-bench: no sampler, no tokenizer, no early end.
    """
    tokens = random.Random(0).choices(range(vocab_size), k=max(n_prompt, n_generate))

    def generate() -> None:
        for position in range(n_generate):
            model.forward((tokens[position],), position)

    tests: list[tuple[str, int, Callable[[], object]]] = [
        ("pp", n_prompt, lambda: model.forward(tokens[:n_prompt], 0)),
        ("tg", n_generate, generate),
    ]
    return [
        BenchRow(f"{name}{count}", tuple(count / s for s in _repeat(run, repeats)))
        for name, count, run in tests
        if count
    ]


def _repeat(run: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` runs, after one warm-up run."""
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        run()
        seconds.append(max(time.perf_counter() - began, 1e-9))
    return seconds[1:]


def measure_perplexity(
    model: Transformer, tokens: Sequence[int], progress: Callable[[int, int], None] | None = None
) -> float:
    """exp of the mean negative log-likelihood of tokens 1 .. n-1, each given all before it.

    Raises UsageError for fewer than two tokens, ModelError where the logits are not numbers.
    """
    if len(tokens) < 2:
        raise UsageError(f"a text of {len(tokens)} tokens predicts nothing", "take a longer one")
    total, position = 0.0, 0
    for logits in model.forward_all(tokens[:-1], 0):  # [n, vocab]
        following = tokens[position + 1 : position + 1 + len(logits)]
        total += negative_log_likelihood(logits, following)
        position += len(logits)
        if progress is not None:
            progress(position, len(tokens) - 1)
    if not math.isfinite(total):
        raise ModelError("the model's output is not a number", "picoedge verify checks its weights")
    return math.exp(total / position)


def negative_log_likelihood(logits: F32, targets: Sequence[int]) -> float:
    """Sum over rows of -log softmax(row)[target], in f64. logits f32 [n, vocab]."""
    total = 0.0
    for row, target in zip(logits, targets, strict=True):  # one by one: wide vocabularies are MBs
        wide = row.astype(np.float64)
        wide -= wide.max()
        chosen = float(wide[target])
        total += math.log(float(np.exp(wide, out=wide).sum())) - chosen
    return total
