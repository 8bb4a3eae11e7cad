"""A tiny seeded model whose greedy text is known beforehand, as a Hugging Face folder.

Row `follow(i)` of the head is the embedding of token i, and the layers add about as much as they
find: the next token wins by a wide margin on any arithmetic, while every layer shows in the logits.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

VOCAB, HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 256, 256, 512, 3, 6, 3, 32


def follow(token: int) -> int:
    """The token that the model says after `token`."""
    return (token * 77 + 13) % VOCAB


def write_tiny_model(folder: Path) -> Path:
    """Write config.json and model.safetensors into `folder`; returns it."""
    rng = np.random.default_rng(7)

    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    embed = rng.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    head = np.empty_like(embed)
    head[[follow(i) for i in range(VOCAB)]] = embed / np.sqrt(HIDDEN)
    tensors = {
        "model.embed_tokens.weight": embed,
        "lm_head.weight": head,
        "model.norm.weight": np.ones(HIDDEN, np.float32),
    }
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        tensors |= {
            f"{layer}.input_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{layer}.post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{layer}.self_attn.q_proj.weight": random(HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.k_proj.weight": random(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.v_proj.weight": random(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.o_proj.weight": random(HIDDEN, HEADS * HEAD_DIM) / 2,
            f"{layer}.mlp.gate_proj.weight": random(FFN, HIDDEN),
            f"{layer}.mlp.up_proj.weight": random(FFN, HIDDEN),
            f"{layer}.mlp.down_proj.weight": random(HIDDEN, FFN) / 2,
        }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder
