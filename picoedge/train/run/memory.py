"""Memory of training, and how it is made to fit. Pure.

    fit = fit_memory(needs, sizes=[4, 2, 1], batch=16, threads=4, budget=400 << 20)

First the micro-batch becomes smaller, until one thread has room; if it has none, activations are
computed anew instead of kept. Then as many threads train as there is room for, which may compute
activations anew too. Only the size of a micro-batch changes bits: so it belongs to the run, and so
it is chosen without regard to threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from picoedge.config import ModelConfig
from picoedge.errors import MemoryBudgetError
from picoedge.kernels.training_abi import QUERIES
from picoedge.model.vjps import HEAD_ROWS
from picoedge.units import format_size

_WIDE_BLOCKS = 0.2  # of a gradient's blocks that need 64 bits in the first steps, at most
_SGEMM_SCRATCH = 4 << 20  # panels of a thread
_THREAD = 2 << 20  # its stack, and arrays of Python
_BLAS_SCRATCH = 24 << 20  # OpenBLAS's buffers


@dataclass(frozen=True)
class TrainingFit:
    """A run's fit to memory: sequences of a micro-batch, threads, bytes at the peak."""

    micro_batch: int
    recompute: bool
    threads: int
    nbytes: int


@dataclass(frozen=True)
class TrainingNeeds:
    """Bytes of a run. `base`: of the process before it; `trained`: values that have a gradient."""

    config: ModelConfig
    trained: int
    length: int
    base: int
    fast: bool = False

    def __call__(self, micro_batch: int, threads: int, *, recompute: bool) -> int:
        """Bytes with a micro-batch of so many sequences."""
        state, gradient = 12 * self.trained, 4 * self.trained
        sums = gradient if self.fast else round(gradient * (1 + 2 * _WIDE_BLOCKS))
        work = micro_batch_bytes(self.config, micro_batch, self.length, recompute=recompute)
        scratch = _SGEMM_SCRATCH + (_BLAS_SCRATCH if self.fast else 0)
        thread = gradient + work + scratch + 4 * 2 * QUERIES * (self.length + 16) + _THREAD
        return self.base + state + sums + threads * thread


def micro_batch_bytes(
    config: ModelConfig, sequences: int, length: int, *, recompute: bool = False
) -> int:
    """Bytes of the arrays of one `MicroBatch`."""
    n, hidden, dim = sequences * length, config.hidden_size, config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    qkv, inner, layers = (heads + 2 * kv_heads) * dim, config.intermediate_size, 1
    kept = hidden + qkv + heads * dim + 3 * inner + 2 * heads + 2  # values a token
    if config.qk_norm:
        kept += (heads + kv_heads) * (dim + 1)
    if config.sandwich_norm:
        kept += 2 * hidden + 2
    if not recompute:
        layers = config.num_hidden_layers
    residuals = (config.num_hidden_layers + 1) * hidden
    scratch = 4 * hidden + inner + qkv + heads * dim + 1
    rope = 2 * length * dim  # two tables, cos and sin
    logits = min(n, HEAD_ROWS) * config.vocab_size
    return 4 * (n * (layers * kept + residuals + scratch) + rope + logits)


def fit_memory(
    needs: Callable[..., int], sizes: Sequence[int], batch: int, threads: int, budget: int
) -> TrainingFit:
    """The first way that fits `budget` bytes; `sizes` of a micro-batch, the preferred first.

    `batch`: sequences of a step. Raises MemoryBudgetError with the figures where nothing fits.
    """
    for again in (False, True):
        for size in sizes:
            if needs(size, 1, recompute=again) <= budget:
                return _with_threads(needs, size, max(1, min(threads, batch // size)), budget)
    least = needs(sizes[-1], 1, recompute=True)
    raise MemoryBudgetError(
        f"training takes at least {format_size(least)} (micro-batches of {sizes[-1]} on one "
        f"thread), {format_size(budget)} may be taken",
        "choose a smaller --preset or --length, or give it more --memory",
    )


def _with_threads(needs: Callable[..., int], size: int, threads: int, budget: int) -> TrainingFit:
    """With as many threads as have room. One more is worth a second forward pass."""
    for count in range(threads, 0, -1):
        for recompute in (False, True):
            nbytes = needs(size, count, recompute=recompute)
            if nbytes <= budget:
                return TrainingFit(size, recompute, count, nbytes)
    raise AssertionError("one thread had room")
