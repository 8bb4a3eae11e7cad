"""Small packed models of every architecture, and the same in PyTorch f64 on the pack's values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from picoedge.kernels.arrays import F32, F64, I32
from picoedge.kernels.stacked import StackedWeights
from picoedge.train.lora.frozen import FrozenModel
from picoedge.train.lora.layout import TARGETS, AdapterLayout


def dense(matrix: StackedWeights) -> F32:
    """All values of a packed matrix."""
    out = np.empty((matrix.rows, matrix.cols), np.float32)
    for rows, cols, values in matrix.dense_shards():
        out[rows, cols] = values
    return out


def frozen_values(model: FrozenModel) -> dict[str, F32]:
    """The pack's matrices by their names in transformers."""
    config = model.config
    dim, heads = config.head_dim, config.num_attention_heads
    cuts = [heads * dim, (heads + config.num_key_value_heads) * dim]
    rows = np.empty((config.vocab_size, config.hidden_size), np.float32)
    model.embedding.gather(np.arange(config.vocab_size, dtype=np.int32), rows)
    found = {"model.embed_tokens.weight": rows}
    if not config.tie_word_embeddings:
        found["lm_head.weight"] = dense(model.head.matrix)
    for i, layer in enumerate(model.layers):
        parts = [
            *np.split(dense(layer.qkv), cuts), dense(layer.o),
            *np.split(dense(layer.gate_up), 2), dense(layer.down),
        ]  # fmt: skip
        for name, values in zip(TARGETS, parts, strict=True):
            found[module(i, name)] = values
    return found


def module(layer: int, target: str) -> str:
    """The name of a target's matrix in transformers."""
    part = "self_attn" if target in TARGETS[:4] else "mlp"
    return f"model.layers.{layer}.{part}.{target}.weight"


def torch_gradients(
    folder: Path, layout: AdapterLayout, weights: F32, tokens: I32, targets: I32
) -> tuple[float, dict[tuple[int, str], tuple[F64, F64]]]:
    """Loss and gradients of A and B by autograd in f64, of the model in a Hugging Face folder.

    tokens, targets i32 [sequences, length]; the loss is the mean over targets from 0 on.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    values = {
        name: torch.from_numpy(value.astype(np.float64))
        for name, value in frozen_values(layout.model).items()
    }
    pairs = {
        key: tuple(
            torch.tensor(side.of(weights), dtype=torch.float64, requires_grad=True) for side in both
        )
        for key, both in layout.tensors.items()
    }
    for (layer, target), (a, b) in pairs.items():
        name = module(layer, target)
        values[name] = values[name] + layout.shape.scale * (b @ a)
    arguments = {"input_ids": torch.from_numpy(tokens.astype(np.int64)), "use_cache": False}
    logits = torch.func.functional_call(model, values, kwargs=arguments).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(targets.astype(np.int64)).flatten(), ignore_index=-1
    )
    loss.backward()
    found = {key: (a.grad.numpy(), b.grad.numpy()) for key, (a, b) in pairs.items()}
    return float(loss.detach()), found
