"""Weights and configs of packs as other programs' files: read again, they are the same model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_models import CASES, packed_model
from transformers_models import reference_logits, reference_model, relative_error

from picoedge.config import ModelConfig, RopeScaling
from picoedge.errors import ModelError, UnsupportedError
from picoedge.kernels.arrays import F32
from picoedge.registry.exporting import rope_divisors
from picoedge.store.export.floats import FloatType, float_bytes
from picoedge.store.export.gguf_export import GgufExport
from picoedge.store.export.huggingface_config import huggingface_values
from picoedge.store.export.huggingface_folder import HuggingFaceExport
from picoedge.store.pack.pack_tensors import PackTensors
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import ModelSource, open_source

NO_WINDOW_IN_GGUF = ("mistral-window",)
TOKENS = [3, 141, 59, 26, 53, 58, 97, 93, 23, 84, 62, 64, 33, 83, 27, 95, 2, 88, 41, 97]


def to_folder(pack: Pack, folder: Path, dtype: FloatType = "f32") -> ModelSource:
    export, written = HuggingFaceExport(PackTensors(pack), dtype), list[int]()
    folder.mkdir()
    export.write(folder, written.append)
    assert sum(written) == export.nbytes
    return open_source(folder)


def to_gguf(pack: Pack, path: Path, dtype: FloatType = "f32") -> ModelSource:
    export = GgufExport(PackTensors(pack), dtype, rope_divisors(pack.config))
    with path.open("wb") as file:
        export.write(file, {}, lambda nbytes: None)
    return open_source(path)


def values(tensors: PackTensors, name: str) -> F32:
    return np.concatenate(list(tensors.blocks(name)))


def assert_same(pack: Pack, source: ModelSource, *, tolerance: float = 0.0) -> None:
    tensors = PackTensors(pack)
    for name, shape in tensors.shapes.items():
        got = source.tensor(name).floats(0, shape[0])
        np.testing.assert_allclose(got, values(tensors, name), rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_the_same_model(name: str, tmp_path: Path) -> None:
    pack = packed_model(name, tmp_path, 32)
    source = to_folder(pack, tmp_path / "out")
    assert source.config == pack.config
    assert_same(pack, source, tolerance=3e-7 if name == "gemma3" else 0)  # 1 + weight


@pytest.mark.parametrize("name", [name for name in CASES if name not in NO_WINDOW_IN_GGUF])
def test_a_gguf_is_the_same_model(name: str, tmp_path: Path) -> None:
    pack = packed_model(name, tmp_path, 32)
    if pack.config.architecture == "gemma3":  # the format has no scale of scores of its own
        pack.config = replace(pack.config, attention_scale=0.0)
    source = to_gguf(pack, tmp_path / "out.gguf")
    want, got = comparable(pack.config), comparable(source.config)
    assert got == want
    if (divisors := rope_divisors(pack.config)) is not None:
        np.testing.assert_allclose(source.config.rope_scaling.freq_factors, divisors, rtol=1e-6)
    assert_same(pack, source)


def comparable(config: ModelConfig) -> ModelConfig:
    """Mistral is a Llama in GGUF files, rope's formula is in its divisors, and floats have f32."""
    architecture = "llama" if config.architecture == "mistral" else config.architecture
    scaling = config.rope_scaling
    if scaling.kind == "llama3":
        scaling = RopeScaling(kind="llama3")
    return replace(
        config,
        architecture=architecture,
        rope_scaling=scaling,
        rms_norm_eps=round(config.rms_norm_eps, 12),
        rope_local_theta=10_000.0,
    )


@pytest.mark.parametrize(
    "name", ["llama-rope-llama3", "mistral-window", "qwen2-bias", "qwen3-norms", "gemma3"]
)
def test_transformers_computes_what_the_original_does(name: str, tmp_path: Path) -> None:
    pack = packed_model(name, tmp_path, 32)
    to_folder(pack, tmp_path / "out")
    want = reference_logits(reference_model(tmp_path / "hf"), TOKENS)
    got = reference_logits(reference_model(tmp_path / "out"), TOKENS)
    assert relative_error(got, want) < 1e-6


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_quantized_values_become_floats(bits: int, tmp_path: Path) -> None:
    pack = packed_model("llama-3-groups-of-3", tmp_path, bits, blocks=True)
    tensors = PackTensors(pack)
    assert not tensors.is_exact
    assert_same(pack, to_folder(pack, tmp_path / "f32"))
    for source in (to_folder(pack, tmp_path / "f16", "f16"), to_gguf(pack, tmp_path / "m", "f16")):
        for name in ("layers.1.down", "layers.0.o", "layers.2.gate", "layers.1.k", "embed", "head"):
            got = source.tensor(name).floats(0, tensors.shapes[name][0])
            np.testing.assert_array_equal(got, values(tensors, name).astype(np.float16))
    original = open_source(tmp_path / "hf").tensor("layers.1.down").floats(0, 288)
    error = np.abs(values(tensors, "layers.1.down") - original).max() / np.abs(original).max()
    assert error < 2.0**-bits * 2


def test_biases_of_llama_bring_one_of_zeros(tmp_path: Path) -> None:
    pack = packed_model("qwen2-bias", tmp_path, 32)
    pack.config = replace(pack.config, architecture="llama")
    source = to_folder(pack, tmp_path / "out")
    assert source.config == pack.config
    assert_same(pack, source)
    want = reference_logits(reference_model(tmp_path / "hf"), TOKENS)
    got = reference_logits(reference_model(tmp_path / "out"), TOKENS)
    assert relative_error(got, want) < 1e-6


def test_values_that_f16_cannot_hold_are_refused() -> None:
    blocks = [np.full((2, 3), 70_000, np.float32)]
    with pytest.raises(ModelError, match="head has values that f16 cannot hold"):
        list(float_bytes(iter(blocks), "f16", "head"))
    assert len(b"".join(float_bytes(iter(blocks), "f32", "head"))) == 24


CONFIG = ModelConfig(
    architecture="llama", hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=160,
    max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=1e4,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (replace(CONFIG, architecture="phi3"), "models of the kind phi3"),
        (replace(CONFIG, rope_scaling=RopeScaling(kind="yarn")), "rope scaling 'yarn'"),
        (replace(CONFIG, attention_scale=0.5), "a scale of scores"),
        (replace(CONFIG, architecture="mistral", qkv_bias=True), "biases of q, k and v"),
        (
            replace(CONFIG, architecture="mistral", sliding_window=9, windowed_layers=(1,)),
            "a window in some layers",
        ),
        (
            replace(CONFIG, rope_scaling=RopeScaling(kind="llama3", freq_factors=(1.0,) * 8)),
            "rope's divisors",
        ),
    ],
)
def test_a_config_that_a_class_cannot_express_is_refused(config: ModelConfig, what: str) -> None:
    with pytest.raises(UnsupportedError, match=what):
        huggingface_values(config, "f32")
