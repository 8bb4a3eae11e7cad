"""Values of a layer's forward pass that its vjp reads."""

from __future__ import annotations

import numpy as np

from picoedge.config import ModelConfig
from picoedge.kernels.arrays import F32


class Activations:
    """Arrays of one layer, of n tokens."""

    def __init__(
        self, config: ModelConfig, n: int, heads: F32 | None = None, product: F32 | None = None
    ) -> None:
        """`heads`, `product`: memory for outputs of heads and gates, where they are not kept."""
        hidden, dim = config.hidden_size, config.head_dim
        q_heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.middle = np.empty((n, hidden), np.float32)
        self.qkv = np.empty((n, (q_heads + 2 * kv_heads) * dim), np.float32)
        self.heads = np.empty((n, q_heads * dim), np.float32) if heads is None else heads
        self.gate_up = np.empty((n, 2 * config.intermediate_size), np.float32)
        if product is None:
            product = np.empty((n, config.intermediate_size), np.float32)
        self.product = product
        self.tops, self.scales = (np.empty(n * q_heads, np.float32) for _ in range(2))
        self.norm_scales = np.empty((2, n), np.float32)
        # Inputs of the norms that some architectures have besides.
        both = q_heads + kv_heads
        self.raw_heads = [
            np.empty((n * count, dim), np.float32) if config.qk_norm else None
            for count in (q_heads, kv_heads)
        ]
        self.raw_scales = np.empty(n * both if config.qk_norm else 0, np.float32)
        sandwich = 2 * n if config.sandwich_norm else 0
        self.raw_sums = np.empty((2, n, hidden) if sandwich else (2, 0, hidden), np.float32)
        self.sum_scales = np.empty((2, n if sandwich else 0), np.float32)
