"""A small random model of every architecture, by `transformers`, and its logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from picoedge.store.pack.packer import pack
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import open_source

VOCAB = 211
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
# Heads of 32 in threes: every matrix fills blocks of 32, so nothing is left in f32.
BLOCK_SIZES: dict[str, Any] = {"hidden_size": 192, "head_dim": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
GEMMA = {"num_hidden_layers": 7, "sliding_window": 9, "query_pre_attn_scalar": 24}


@dataclass(frozen=True)
class Case:
    """A family of `transformers` and what differs from SIZES (and from BLOCK_SIZES)."""

    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    blocks: dict[str, Any] = field(default_factory=dict)


CASES = {
    "llama": Case("Llama"),
    "llama-tied": Case("Llama", {"tie_word_embeddings": True}),
    "llama-3-groups-of-3": Case(
        "Llama",
        {"hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3},
        {"hidden_size": 288},
    ),
    "llama-rope-llama3": Case("Llama", {"rope_parameters": LLAMA3}),
    "llama-rope-linear": Case("Llama", {"rope_parameters": LINEAR}),
    "llama-one-kv-head": Case(
        "Llama",
        {"hidden_size": 160, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 32},
        {"hidden_size": 160},
    ),
    "mistral-window": Case("Mistral", {"sliding_window": 11}),
    "mistral": Case("Mistral", {"sliding_window": None}),
    "qwen2-bias": Case("Qwen2", {"tie_word_embeddings": True}),
    "qwen3-norms": Case("Qwen3"),
    "gemma3": Case("Gemma3", GEMMA),
}


def random_model(name: str, *, blocks: bool = False) -> Any:
    """The case's model in f32, every weight random and wide enough to show in the logits."""
    case = CASES[name]
    sizes = SIZES | case.changes | ((BLOCK_SIZES | case.blocks) if blocks else {})
    config_name = "Gemma3TextConfig" if case.family == "Gemma3" else f"{case.family}Config"
    config = getattr(transformers, config_name)(**sizes)
    model = getattr(transformers, f"{case.family}ForCausalLM")(config).eval().to(torch.float32)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:  # norms and biases
                parameter.copy_(0.2 * noise + ("norm" in key))
            else:
                parameter.copy_(0.9 * noise * parameter.shape[1] ** -0.5)
    return model


def packed_model(model: Any, folder: Path, bits: int) -> Pack:
    """The model saved as a Hugging Face folder, and packed."""
    model.save_pretrained(folder / "hf")
    pack(open_source(folder / "hf"), folder / "m.pico", bits=bits)
    return Pack.open(folder / "m.pico")


def reference_logits(model: Any, tokens: list[int]) -> np.ndarray:
    """Logits after every token, [n, vocab]."""
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    return logits


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference in units of the largest logit."""
    return float(np.abs(got - want).max() / np.abs(want).max())
