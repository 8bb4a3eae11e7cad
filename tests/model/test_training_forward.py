"""The forward pass of training and that of inference: one model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trained_packs import pack_weights
from training_material import ARCHITECTURES, bound, random_weights, tiny_config

from picoedge.config import ModelConfig
from picoedge.kernels.arrays import F32
from picoedge.kernels.loader import load_kernels, load_training_kernels
from picoedge.model.transformer import Transformer
from picoedge.model.vjps import MicroBatch
from picoedge.train.presets import PRESETS, preset

TOKENS = 70  # more than a window, and than a block of queries
CONFIGS = {name: replace(preset(name), num_hidden_layers=2) for name in PRESETS} | {
    name: tiny_config(name) for name in ARCHITECTURES
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_training_are_those_of_inference(name: str, tmp_path: Path) -> None:
    config, random = CONFIGS[name], np.random.default_rng(1)
    weights = random_weights(config)
    tokens = random.integers(0, config.vocab_size, TOKENS).astype(np.int32)
    trained = trained_logits(config, weights, tokens.tolist())
    pack = pack_weights(config, weights, tmp_path)
    with closing(load_kernels("native", 1)) as kernels:
        model = Transformer(pack, kernels, TOKENS)
        logits = model.forward(tokens.tolist(), 0).copy()
        model.forward(tokens.tolist()[:-1], 0)
        np.testing.assert_array_equal(model.forward(tokens.tolist()[-1:], TOKENS - 1), logits)
    error = np.linalg.norm(trained - logits) / np.linalg.norm(trained)
    assert error < 1e-5


def trained_logits(config: ModelConfig, weights: dict[str, F32], tokens: list[int]) -> F32:
    _, parameters = bound(config, weights)
    work = MicroBatch(config, load_training_kernels(), parameters, 1, len(tokens))
    return work.logits(np.asarray(tokens, np.int32))
