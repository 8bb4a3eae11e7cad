"""Trained weights as a pack: what inference computes with it is what training did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from training_material import tiny_config

from picoedge.engine.open import load_model
from picoedge.engine.options import OpenOptions
from picoedge.kernels.loader import load_training_kernels
from picoedge.model.vjps import MicroBatch
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.train.run.samples import LONGEST_SAMPLE, TextSampler
from picoedge.train.run.source import TrainedSource
from picoedge.train.state.checkpoints import Saved, data_start, write_saved
from picoedge.train.state.layout import Layout

CONFIG = replace(tiny_config("llama"), hidden_size=64, intermediate_size=96)
LAYOUT = Layout.of(CONFIG)


def test_a_pack_has_the_logits_of_training(tmp_path: Path) -> None:
    weights = LAYOUT.initial(3)
    weights *= 4  # far from a uniform answer
    path, out = tmp_path / "w.safetensors", tmp_path / "m.pico"
    write_saved(path, Saved({"weights": weights, "m": weights}, {}))
    pack_source(TrainedSource(path, data_start(path), LAYOUT, "m"), out, bits=32)
    tokens = np.arange(48, dtype=np.int32) * 7 % 160
    work = MicroBatch(
        CONFIG, load_training_kernels(), LAYOUT.bind(weights, np.empty_like(weights)), 1, 48
    )
    model = load_model(Pack.open(out), OpenOptions(threads=1, n_ctx=64))
    try:
        for last in (5, 47):
            theirs = model.forward(tokens[: last + 1].tolist(), 0)
            ours = work.logits(tokens, last)
            assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
    finally:
        model.close()


def test_a_sample_begins_with_the_prompt_and_is_the_same_again() -> None:
    weights = LAYOUT.initial(3)
    bound = LAYOUT.bind(weights, weights)
    before = weights.tobytes()
    sampler = TextSampler(CONFIG, load_training_kernels(), bound, [5, 6], frozenset())
    first = sampler.sample(1)
    assert first[:2] == [5, 6]
    assert len(first) == LONGEST_SAMPLE
    assert sampler.sample(1) == first != sampler.sample(2)
    assert weights.tobytes() == before
    every = TextSampler(CONFIG, load_training_kernels(), bound, [5], frozenset(range(160)))
    assert every.sample(1) == [5]
