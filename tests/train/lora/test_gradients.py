"""Gradients of adapters on quantized packs: against PyTorch's autograd in f64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lora_models import torch_gradients
from random_models import CASES, VOCAB, packed_model

from picoedge.kernels.arrays import F32, I32
from picoedge.kernels.loader import load_training_kernels
from picoedge.model.vjps import MicroBatch
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


def tokens_and_targets() -> tuple[I32, I32]:
    random = np.random.default_rng(3)
    tokens = random.integers(0, VOCAB, (SEQUENCES, LENGTH + 1)).astype(np.int32)
    targets = tokens[:, 1:].copy()
    targets[:, :30] = -1  # a prompt
    targets[1, 50:] = -1
    return np.ascontiguousarray(tokens[:, :-1]), targets


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_autograd(name: str, tmp_path: Path) -> None:
    layout = layout_of(tmp_path, name)
    weights = drawn(layout)
    tokens, targets = tokens_and_targets()
    loss, wanted = torch_gradients(tmp_path / "hf", layout, weights, tokens, targets)
    gradient = np.full(layout.length, np.nan, np.float32)
    parameters = layout.bind(weights, gradient)
    work = MicroBatch(
        layout.config, load_training_kernels(), parameters, SEQUENCES, LENGTH, recompute=True,
        kept_layers=1, head_rows=64,
    )  # fmt: skip
    count = int(np.count_nonzero(targets >= 0))
    losses = work.losses_and_gradients(tokens.ravel(), targets.ravel(), 1 / count)
    assert losses.sum() / count == pytest.approx(loss, rel=1e-5)
    for key, both in layout.tensors.items():
        for side, right in zip(both, wanted[key], strict=True):
            error = np.linalg.norm(side.of(gradient) - right) / np.linalg.norm(right)
            assert error < TOLERANCES.get(name, 1e-5), (key, side.name)
