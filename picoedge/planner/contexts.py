"""The context that suits a board where none is asked for."""

from __future__ import annotations

from picoedge.config import ModelConfig
from picoedge.planner.memory import Load, cache_bytes
from picoedge.store.shards import Slice

DEFAULT_CONTEXT = 4096
SMALLEST_DEFAULT_CONTEXT = 512


def default_context(config: ModelConfig, budget: int, *, kv_bits: int = 16) -> int:
    """Context when none is asked for: modest, the model's own limit, a quarter of the memory."""
    n_ctx = min(DEFAULT_CONTEXT, config.max_position_embeddings)
    heads = Slice(range(config.num_key_value_heads), range(0))
    while n_ctx > SMALLEST_DEFAULT_CONTEXT:
        if cache_bytes(Load(config, heads, (), 0, n_ctx, kv_bits)) <= budget // 4:
            break
        n_ctx //= 2
    return n_ctx
