"""Sizes of models to train from nothing: Llama's architecture, the embedding tied to the head."""

from __future__ import annotations

from picoedge.config import ModelConfig

# vocabulary, hidden, layers, heads, key-value heads, FFN
_SIZES = {
    "1m": (1024, 128, 4, 4, 4, 352),
    "5m": (4096, 256, 5, 4, 4, 704),
    "15m": (8192, 384, 7, 6, 6, 1024),
    "40m": (16384, 512, 10, 8, 8, 1408),
}
PRESETS = tuple(_SIZES)


def preset(name: str, context: int = 512) -> ModelConfig:
    """The configuration of a preset."""
    vocabulary, hidden, layers, heads, kv_heads, inner = _SIZES[name]
    return ModelConfig(
        architecture="llama",
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
    )
