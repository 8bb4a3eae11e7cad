"""Hugging Face folders, packed and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from packed_source import packed
from safetensors.numpy import load_file, save_file
from store_models import HIDDEN, LAYERS, VOCAB, folder_config, whole, write_folder

from picoedge.errors import ModelError
from picoedge.store.sources.source import open_source

STORED = {
    "q": ("self_attn.q_proj", 0), "k": ("self_attn.k_proj", 0), "v": ("self_attn.v_proj", 0),
    "o": ("self_attn.o_proj", 1), "gate": ("mlp.gate_proj", 0), "up": ("mlp.up_proj", 0),
    "down": ("mlp.down_proj", 1),
}  # fmt: skip
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_pack_in_f32_holds_the_folders_weights(
    tmp_path: Path, model_type: str, tied: bool
) -> None:
    values = write_folder(tmp_path / "m", model_type, tied=tied)
    opened = packed(tmp_path / "m", 32)
    opened.verify()
    for layer in range(LAYERS):
        weights = {**opened.mapped("attention", layer), **opened.mapped("ffn", layer)}
        for name, (stored, axis) in STORED.items():
            expected = values[f"model.layers.{layer}.{stored}.weight"]
            assert np.array_equal(whole(weights[name], axis), expected), name
    head = values["model.embed_tokens.weight" if tied else "lm_head.weight"]
    assert np.array_equal(whole(opened.head(), 0)[:VOCAB], head)
    if not tied:
        out = np.empty((2, HIDDEN), np.float32)
        opened.embedding.gather([3, VOCAB - 1], out)
        assert np.array_equal(out, values["model.embed_tokens.weight"][[3, VOCAB - 1]])


def test_norms_are_stored_as_they_act(tmp_path: Path) -> None:
    values = write_folder(tmp_path / "llama", "llama")
    norms = packed(tmp_path / "llama", 32).norms(1)
    second = values["model.layers.1.post_attention_layernorm.weight"]
    assert np.array_equal(norms["pre_ffn_norm"], second)  # despite its name there
    values = write_folder(tmp_path / "gemma", "gemma3_text")
    opened = packed(tmp_path / "gemma", 32)
    stored = {
        "input_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
        "pre_ffn_norm": "pre_feedforward_layernorm", "post_ffn_norm": "post_feedforward_layernorm",
        "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
    }  # fmt: skip
    for name, norm in opened.norms(1).items():
        assert np.array_equal(norm, 1 + values[f"model.layers.1.{stored.pop(name)}.weight"]), name
    assert not stored
    assert np.array_equal(opened.final_norm, 1 + values["model.norm.weight"])


def test_biases_follow_their_rows(tmp_path: Path) -> None:
    values = write_folder(tmp_path / "m", "qwen2")
    opened = packed(tmp_path / "m", 32)
    for name in "qkv":
        expected = values[f"model.layers.1.self_attn.{name}_proj.bias"]
        assert np.array_equal(opened.biases(1)[f"{name}_bias"], expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_are_read(tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    values = write_folder(tmp_path / "m")
    halves = {k: torch.from_numpy(v).to(getattr(torch, dtype)) for k, v in values.items()}
    save_torch(halves, tmp_path / "m" / "model.safetensors")
    up = whole(packed(tmp_path / "m", 32).mapped("ffn", 1)["up"], 0)
    assert np.array_equal(up, halves["model.layers.1.mlp.up_proj.weight"].float().numpy())


def test_indexed_files_are_read_together(tmp_path: Path) -> None:
    values = write_folder(tmp_path / "m", files=3)
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "m" / "consolidated.safetensors")
    up = whole(packed(tmp_path / "m", 32).mapped("ffn", 1)["up"], 0)
    assert np.array_equal(up, values["model.layers.1.mlp.up_proj.weight"])
    (tmp_path / "m" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.safetensors"):
        open_source(tmp_path / "m")


def test_several_files_without_an_index_are_read_together(tmp_path: Path) -> None:
    values = write_folder(tmp_path / "m", files=2)
    (tmp_path / "m" / "model.safetensors.index.json").unlink()
    gate = whole(packed(tmp_path / "m", 32).mapped("ffn", 0)["gate"], 0)
    assert np.array_equal(gate, values["model.layers.0.mlp.gate_proj.weight"])


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_language_model_of_a_multimodal_gemma(tmp_path: Path, prefix: str) -> None:
    inner = folder_config("gemma3_text", tied=True)
    config = {"model_type": "gemma3", "text_config": inner, "vision_config": {"hidden_size": 9}}
    vision = {"vision_tower.x.weight": np.zeros(4, np.int8),
              "model.multi_modal_projector.y": np.zeros(4, np.int8)}  # fmt: skip
    values = write_folder(
        tmp_path / "m", "gemma3_text", tied=True, config=config, extra=vision, prefix=prefix
    )
    opened = packed(tmp_path / "m", 32)
    down = values[f"{prefix}layers.1.mlp.down_proj.weight"]
    assert np.array_equal(whole(opened.mapped("ffn", 1)["down"], 1), down)
    assert opened.config.attention_scale == pytest.approx(0.1)


def test_the_fingerprint_changes_with_weights_and_tokenizer(tmp_path: Path) -> None:
    write_folder(tmp_path)
    seen = {open_source(tmp_path).fingerprint}
    (tmp_path / "tokenizer.json").write_text("{}")
    seen.add(open_source(tmp_path).fingerprint)
    values = load_file(tmp_path / "model.safetensors")
    save_file({k: v + 1 for k, v in values.items()}, tmp_path / "model.safetensors")
    seen.add(open_source(tmp_path).fingerprint)
    assert len(seen) == 3


GENERATION: dict[str, tuple[str, dict[str, float]]] = {
    "qwen3": ('{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95}',
              {"temperature": 0.6, "top_k": 20, "top_p": 0.95}),
    "lfm": ('{"temperature": 0.3, "min_p": 0.15, "repetition_penalty": 1.05}',
            {"temperature": 0.3, "min_p": 0.15, "repeat_penalty": 1.05}),
    "greedy": ('{"do_sample": false, "temperature": 0.6, "repetition_penalty": 1.1}',
               {"repeat_penalty": 1.1}),
    "nonsense": ('{"temperature": "hot", "top_p": 9, "top_k": true, "min_p": NaN, "seed": 3}', {}),
    "damaged": ('{"temperature": 0.6', {}),
    "null": ('{"temperature": null, "top_k": 0}', {"top_k": 0}),
}  # fmt: skip


@pytest.mark.parametrize("case", GENERATION)
def test_how_a_folder_says_it_is_sampled(case: str, tmp_path: Path) -> None:
    text, expected = GENERATION[case]
    write_folder(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(text)
    assert dict(open_source(tmp_path / "m").sampling) == expected
    assert packed(tmp_path / "m", 32).sampling == expected
