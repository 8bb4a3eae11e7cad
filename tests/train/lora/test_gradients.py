"""Gradients of adapters on quantized packs: against PyTorch's autograd in f64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_models import saved_gradients, torch_gradients
from random_models import CASES, VOCAB, packed_model
from safetensors.numpy import load_file, save_file
from saved_models import save_random

from picoedge.kernels.arrays import F32, F64, I32
from picoedge.kernels.loader import load_training_kernels
from picoedge.model.vjps import MicroBatch
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import open_source
from picoedge.train.lora.frozen import FrozenModel
from picoedge.train.lora.layout import TARGETS, AdapterLayout, LoraShape

SEQUENCES, LENGTH = 2, 80
# The windows and norms of this random Gemma magnify rounding: PyTorch's own f32 is 3.5e-5 from f64.
TOLERANCES = {"gemma3": 5e-5}


def layout_of(folder: Path, name: str, targets: tuple[str, ...] = TARGETS) -> AdapterLayout:
    pack = packed_model(name, folder, 4, blocks=True)
    return AdapterLayout.of(FrozenModel.of(pack), LoraShape(4, 8.0, targets))


def drawn(layout: AdapterLayout) -> F32:
    """Weights whose B is not zero any more."""
    weights = layout.initial(1)
    random = np.random.default_rng(2)
    for _, b in layout.tensors.values():
        b.of(weights)[...] = random.standard_normal(b.shape) * 0.05
    return weights


def tokens_and_targets(vocabulary: int, length: int = LENGTH) -> tuple[I32, I32]:
    random = np.random.default_rng(3)
    tokens = random.integers(0, vocabulary, (SEQUENCES, length + 1)).astype(np.int32)
    targets = tokens[:, 1:].copy()
    targets[:, :30] = -1  # a prompt
    targets[1, 50:] = -1
    return np.ascontiguousarray(tokens[:, :-1]), targets


Gradients = dict[tuple[int, str], tuple[F64, F64]]


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_autograd(name: str, tmp_path: Path) -> None:
    layout = layout_of(tmp_path, name)
    weights = drawn(layout)
    tokens, targets = tokens_and_targets(VOCAB)
    loss, wanted = torch_gradients(tmp_path / "hf", layout, weights, tokens, targets)
    assert_right(layout, weights, tokens, targets, loss, wanted, TOLERANCES.get(name, 1e-5))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
        "rope_theta": 1e4}  # fmt: skip
PARTIAL = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0,
           "original_max_position_embeddings": 32, "partial_rotary_factor": 0.75,
           "short_factor": [1.0 + 0.1 * i for i in range(6)],
           "long_factor": [1.5 + 0.5 * i for i in range(6)]}  # fmt: skip
# Of each architecture what the models above lack; the vocabulary is a prime number.
SAVED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, biases": ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    "mistral, tied": ("mistral", {"sliding_window": 7, "tie_word_embeddings": True}),
    "ministral3": ("ministral3", {"max_position_embeddings": 262144}),
    "qwen2, untied, windowed": (
        "qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 7}),
    "qwen3, tied, yarn": ("qwen3", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3, biases": ("qwen3", {"attention_bias": True}),
    "gemma3, biases, untied": (
        "gemma3_text",
        {"sliding_window": 7, "attention_bias": True, "tie_word_embeddings": False}),
    "phi3, tied, windowed": (
        "phi3", {"tie_word_embeddings": True, "sliding_window": 7, "pad_token_id": 0}),
    "phi3, partial longrope": (
        "phi3", {"rope_parameters": PARTIAL, "original_max_position_embeddings": 32,
                 "pad_token_id": 0}),
}  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
def test_gradients_of_a_saved_model_are_those_of_autograd(name: str, tmp_path: Path) -> None:
    folder, vocabulary = tmp_path / "hf", 97
    model_type, options = SAVED[name]
    save_random(folder, model_type, {**options, "vocab_size": vocabulary})
    without_other_biases(folder)
    pack_source(open_source(folder), tmp_path / "m.pico", bits=32)
    frozen = FrozenModel.of(Pack.open(tmp_path / "m.pico"))
    layout = AdapterLayout.of(frozen, LoraShape(4, 8.0, TARGETS))
    weights = drawn(layout)
    tokens, targets = tokens_and_targets(vocabulary, 60)
    loss, wanted = saved_gradients(folder, layout, weights, tokens, targets)
    assert_right(layout, weights, tokens, targets, loss, wanted, 1e-5)


def without_other_biases(folder: Path) -> None:
    """Zeros for biases of o, which is what models with attention_bias have."""
    tensors = load_file(folder / "model.safetensors")
    zeros = {name: 0 * each for name, each in tensors.items() if name.endswith("o_proj.bias")}
    save_file({**tensors, **zeros}, folder / "model.safetensors", {"format": "pt"})


def assert_right(
    layout: AdapterLayout, weights: F32, tokens: I32, targets: I32, loss: float,
    wanted: Gradients, tolerance: float,
) -> None:  # fmt: skip
    """Loss and gradients of one step are those that were computed in f64."""
    gradient = np.full(layout.length, np.nan, np.float32)
    parameters = layout.bind(weights, gradient)
    work = MicroBatch(
        layout.config, load_training_kernels(), parameters, *tokens.shape, recompute=True,
        kept_layers=1, head_rows=64,
    )  # fmt: skip
    count = int(np.count_nonzero(targets >= 0))
    losses = work.losses_and_gradients(tokens.ravel(), targets.ravel(), 1 / count)
    assert losses.sum() / count == pytest.approx(loss, rel=1e-5)
    for key, both in layout.tensors.items():
        for side, right in zip(both, wanted[key], strict=True):
            error = np.linalg.norm(side.of(gradient) - right) / np.linalg.norm(right)
            assert error < tolerance, (key, side.name)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_gradients_of_a_rehearsal_are_those_of_the_divergence(name: str, tmp_path: Path) -> None:
    layout = layout_of(tmp_path, name)
    weights, (tokens, _) = drawn(layout), tokens_and_targets(VOCAB)
    targets = np.roll(tokens, -1, axis=1)
    _, wanted = torch_gradients(
        tmp_path / "hf", layout, weights, tokens, targets, rehearsed=True
    )  # fmt: skip
    nothing = np.zeros_like(weights)
    gradient = np.full(layout.length, np.nan, np.float32)
    before, after = (
        MicroBatch(
            layout.config, load_training_kernels(), layout.bind(values, gradient), SEQUENCES,
            LENGTH, recompute=True, head_rows=64,
        )
        for values in (nothing, weights)
    )  # fmt: skip
    reference, flat = before.hidden(tokens.ravel()), targets.ravel()
    losses = before.losses_and_gradients(tokens.ravel(), flat, 1.0, reference=reference)
    assert not losses.any()
    trained = [side.of(gradient) for both in layout.tensors.values() for side in both]
    assert not any(map(np.any, trained))  # a model that has not changed is left alone, to the bit
    after.losses_and_gradients(tokens.ravel(), flat, 1 / tokens.size, reference=reference)
    for key, both in layout.tensors.items():
        for side, right in zip(both, wanted[key], strict=True):
            error = np.linalg.norm(side.of(gradient) - right) / np.linalg.norm(right)
            assert error < 2 * TOLERANCES.get(name, 1e-5), (key, side.name)
