"""Small random models as `transformers` saves them, of any model type and with any options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import open_source

VOCAB = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 64,
}  # fmt: skip


def save_random(folder: Path, model_type: str, options: dict[str, Any]) -> Path:
    """A model of random weights, saved by `transformers`; returns the folder."""
    import torch
    import transformers

    torch.manual_seed(3)
    values = {**SIZES, **options}
    config = transformers.AutoConfig.for_model(model_type, **values)
    return save_model(folder, transformers.AutoModelForCausalLM.from_config(config))


def save_model(folder: Path, model: Any) -> Path:
    """Give every weight of a model a random value that shows, and save it."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            wide = 1.0 if weight.ndim == 1 else 0.9 * weight.shape[-1] ** -0.5
            start = 1.0 if "norm" in name and "gemma" not in type(model).__name__.lower() else 0.0
            weight.copy_(start + 0.2 * torch.randn_like(weight) if weight.ndim == 1
                         else wide * torch.randn_like(weight))  # fmt: skip
    model.float().save_pretrained(folder)
    return folder


def edit_config(folder: Path, changes: dict[str, Any]) -> None:
    """Change fields of a folder's config.json (... takes one away)."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def our_logits(folder: Path, tokens: list[int], n_ctx: int = 0) -> np.ndarray:
    """Logits after every token, [n, vocab], of the folder packed in f32."""
    source = open_source(folder)
    pack_source(source, folder.with_suffix(".pico"), bits=32)
    pack = Pack.open(folder.with_suffix(".pico"))
    ours = Transformer(pack, load_kernels("numpy", 1), n_ctx or len(tokens))
    rows = np.concatenate([rows.copy() for rows in ours.forward_all(tokens, 0)])
    ours.close()
    return rows
