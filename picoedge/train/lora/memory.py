"""Memory of fine-tuning, and how it is made to fit. Pure.

Of each thread the residuals before all layers are kept, and the values of as many layers as there
is room for; the others compute them again on the way back. No bit changes by that.
"""

from __future__ import annotations

from dataclasses import dataclass

from picoedge.config import ModelConfig
from picoedge.errors import MemoryBudgetError
from picoedge.kernels.training_abi import QUERIES
from picoedge.units import format_size

_HEAD_ROWS = (256, 128, 64, 16)  # tokens whose logits are in memory at once
_SGEMM_SCRATCH = 3 << 20  # panels of a thread
_THREAD = 2 << 20  # its stack, and arrays of Python
_WIDE = 1.4  # of sums of gradients: some blocks have 64 bits


@dataclass(frozen=True)
class LoraFit:
    """A run's fit to memory: threads, layers whose values are kept, rows of logits, bytes."""

    threads: int
    kept_layers: int
    head_rows: int
    nbytes: int


@dataclass(frozen=True)
class LoraNeeds:
    """Bytes of a run: `base` of the process and the pack; `trained` values; `n` tokens a thread."""

    config: ModelConfig
    trained: int
    n: int
    length: int
    base: int
    keeps_heads: bool  # whether an adapter of o reads the outputs of heads
    keeps_product: bool  # whether an adapter of down reads the outputs of gates

    @property
    def layer(self) -> int:
        """Bytes of a layer's values."""
        config = self.config
        heads, kv_heads, dim = (
            config.num_attention_heads, config.num_key_value_heads, config.head_dim,
        )  # fmt: skip
        kept = config.hidden_size + (heads + 2 * kv_heads) * dim + 2 * config.intermediate_size
        kept += 2 * heads + 2 + self.keeps_heads * heads * dim
        kept += self.keeps_product * config.intermediate_size
        if config.qk_norm:
            kept += (heads + kv_heads) * (dim + 1)
        if config.sandwich_norm:
            kept += 2 * config.hidden_size + 2
        return 4 * self.n * kept

    def thread(self, head_rows: int) -> int:
        """Bytes of a thread that keeps no layer's values."""
        config, n = self.config, self.n
        heads = config.num_attention_heads * config.head_dim
        qkv = heads + 2 * config.num_key_value_heads * config.head_dim
        values = (config.num_hidden_layers + 5) * config.hidden_size + 2 * config.intermediate_size
        values += qkv + 2 * heads
        rows = min(n, head_rows) * (config.vocab_size + 3 * config.hidden_size)
        rope, scores = 2 * self.length * config.head_dim, 2 * QUERIES * (self.length + 16)
        return (
            4 * (n * values + rows + rope + scores + self.trained)
            + self.layer + _SGEMM_SCRATCH + _THREAD
        )  # fmt: skip

    def fit(self, threads: int, budget: int) -> LoraFit:
        """The first way that fits: fewer kept layers, then fewer rows of logits, then threads.

        Raises MemoryBudgetError with the figures where none does.
        """
        layers = self.config.num_hidden_layers
        shared = self.base + round((12 + 4 * _WIDE) * self.trained)
        least = 0
        for count in range(threads, 0, -1):
            for head_rows in _HEAD_ROWS:
                least = shared + count * self.thread(head_rows)
                room = (budget - least) // (count * self.layer)
                if room < 0 or (head_rows > _HEAD_ROWS[-2] and room < layers - 1):
                    continue
                kept = layers if room >= layers - 1 else room
                nbytes = least + count * min(room, layers - 1) * self.layer
                return LoraFit(count, kept, head_rows, nbytes)
        raise MemoryBudgetError(
            f"fine-tuning takes at least {format_size(least)} (one thread, {self.n} tokens at "
            f"once), {format_size(budget)} may be taken",
            "choose a smaller --context or --rank, another model, or give it more --memory",
        )
