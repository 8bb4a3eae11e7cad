"""Small packed models of every architecture, and the same in PyTorch f64 on the pack's values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    folder: Path,
    layout: AdapterLayout,
    weights: F32,
    tokens: I32,
    targets: I32,
    *,
    rehearsed: bool = False,
) -> tuple[float, dict[tuple[int, str], tuple[F64, F64]]]:
    """Loss and gradients of A and B by autograd in f64, of the model in a Hugging Face folder.

    tokens, targets i32 [sequences, length]; the loss is the mean over targets from 0 on. Where it
    is `rehearsed`, the loss is the mean divergence of all tokens from the model without adapters.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    frozen = {
        name: torch.from_numpy(value.astype(np.float64))
        for name, value in frozen_values(layout.model).items()
    }
    pairs = {
        key: tuple(
            torch.tensor(side.of(weights), dtype=torch.float64, requires_grad=True) for side in both
        )
        for key, both in layout.tensors.items()
    }
    values = dict(frozen)
    for (layer, target), (a, b) in pairs.items():
        name = module(layer, target)
        values[name] = values[name] + layout.shape.scale * (b @ a)
    arguments = {"input_ids": torch.from_numpy(tokens.astype(np.int64)), "use_cache": False}
    logits = torch.func.functional_call(model, values, kwargs=arguments).logits.flatten(0, 1)
    if rehearsed:
        with torch.no_grad():
            before = torch.func.functional_call(model, frozen, kwargs=arguments).logits
        logs = logits.log_softmax(-1)
        wanted = before.flatten(0, 1).log_softmax(-1)
        loss = torch.nn.functional.kl_div(logs, wanted, log_target=True, reduction="batchmean")
    else:
        wanted = torch.from_numpy(targets.astype(np.int64)).flatten()
        loss = torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-1)
    loss.backward()
    found = {key: (a.grad.numpy(), b.grad.numpy()) for key, (a, b) in pairs.items()}
    return float(loss.detach()), found


_STORED = {
    "self_attn.q_proj": ("q_proj",), "self_attn.k_proj": ("k_proj",),
    "self_attn.v_proj": ("v_proj",), "self_attn.o_proj": ("o_proj",),
    "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "mlp.gate_proj": ("gate_proj",), "mlp.up_proj": ("up_proj",), "mlp.down_proj": ("down_proj",),
    "mlp.gate_up_proj": ("gate_proj", "up_proj"),
}  # fmt: skip


def saved_gradients(
    folder: Path, layout: AdapterLayout, weights: F32, tokens: I32, targets: I32
) -> tuple[float, dict[tuple[int, str], tuple[F64, F64]]]:
    """As `torch_gradients`, of a model of any type whose pack is in f32.

    Where its rows lie in the files is found by their values: Phi's matrices are fused, and rows of
    heads that are rotated in part have another order in packs.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    pairs = {
        key: tuple(
            torch.tensor(side.of(weights), dtype=torch.float64, requires_grad=True) for side in both
        )
        for key, both in layout.tensors.items()
    }
    frozen, values = frozen_values(layout.model), {}
    for name, parameter in model.named_parameters():
        layer, _, stored = name.removesuffix(".weight").partition("layers.")[2].partition(".")
        if stored not in _STORED or not name.endswith(".weight"):
            continue
        packed = [frozen[module(int(layer), target)] for target in _STORED[stored]]
        added = [
            pairs[int(layer), target][1] @ pairs[int(layer), target][0]
            for target in _STORED[stored]
        ]
        order = _places(np.concatenate(packed), parameter.detach().numpy().astype(np.float32))
        delta = torch.cat(added)[torch.from_numpy(order)]
        values[name] = parameter.detach() + layout.shape.scale * delta
    arguments = {"input_ids": torch.from_numpy(tokens.astype(np.int64)), "use_cache": False}
    logits = torch.func.functional_call(model, values, kwargs=arguments).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(targets.astype(np.int64)).flatten(), ignore_index=-1
    )
    loss.backward()
    found = {key: (a.grad.numpy(), b.grad.numpy()) for key, (a, b) in pairs.items()}
    return float(loss.detach()), found


def _places(packed: F32, stored: F32) -> NDArray[np.int64]:
    """The row of `packed` that each row of `stored` is."""
    rows = {row.tobytes(): i for i, row in enumerate(packed)}
    return np.array([rows[row.tobytes()] for row in stored])
