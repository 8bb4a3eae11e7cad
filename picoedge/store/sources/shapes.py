"""Canonical tensors of a model and their shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from picoedge.config import ModelConfig


@dataclass(frozen=True)
class Shapes:
    """Shapes (rows, cols) of all tensors; a vector is (n, 1)."""

    globals: dict[str, tuple[int, int]]
    layer: dict[str, tuple[int, int]]
    n_layers: int

    def shape(self, name: str) -> tuple[int, int]:
        """Shape of a canonical tensor."""
        return self.globals[name] if name in self.globals else self.layer[name.split(".")[2]]

    def names(self) -> Iterator[str]:
        """Every canonical tensor of the model."""
        yield from self.globals
        for i in range(self.n_layers):
            for kind in self.layer:
                yield f"layers.{i}.{kind}"

    @classmethod
    def of(cls, config: ModelConfig) -> Shapes:
        """Tensors of a model with this config."""
        hidden, inner = config.hidden_size, config.intermediate_size
        q_rows = config.num_attention_heads * config.head_dim
        kv_rows = config.num_key_value_heads * config.head_dim
        layer = {
            "q": (q_rows, hidden), "k": (kv_rows, hidden), "v": (kv_rows, hidden),
            "o": (hidden, q_rows), "gate": (inner, hidden), "up": (inner, hidden),
            "down": (hidden, inner),
        }  # fmt: skip
        if config.qkv_bias:
            layer |= {"q_bias": (q_rows, 1), "k_bias": (kv_rows, 1), "v_bias": (kv_rows, 1)}
        layer |= {norm: (length, 1) for norm, length in norm_lengths(config).items()}
        whole = {"embed": (config.vocab_size, hidden), "final_norm": (hidden, 1)}
        if not config.tie_word_embeddings:
            whole["head"] = (config.vocab_size, hidden)
        return cls(whole, layer, config.num_hidden_layers)


def norm_lengths(config: ModelConfig) -> dict[str, int]:
    """Norms of one layer and their sizes, in stored order."""
    hidden = config.hidden_size
    lengths = {"input_norm": hidden, "pre_ffn_norm": hidden}
    if config.sandwich_norm:
        lengths |= {"post_attention_norm": hidden, "post_ffn_norm": hidden}
    if config.qk_norm:
        lengths |= {"q_norm": config.head_dim, "k_norm": config.head_dim}
    return lengths
