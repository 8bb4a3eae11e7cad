"""Folders with the options that published models have, against `transformers` in f32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saved_models import VOCAB, edit_config, our_logits, save_random
from transformers_models import reference_logits, reference_model, relative_error

from picoedge.errors import UnsupportedError
from picoedge.store.sources.source import open_source

ROPE = {"rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, **ROPE}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [1.5 + 0.5 * i for i in range(8)]}  # fmt: skip
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOW = {"sliding_window": 7}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ministral": ("ministral", {"layer_types": LAYER_TYPES, **WINDOW}),
    "ministral, all windowed": ("ministral", WINDOW),
    "ministral, none": ("ministral", {"layer_types": ["full_attention"] * 3, **WINDOW}),
    "ministral3": ("ministral3", {"max_position_embeddings": 262144}),
    "mistral, window": ("mistral", WINDOW),
    "qwen2, some layers": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, **WINDOW}),
    "qwen2, listed": ("qwen2", {"use_sliding_window": True, "layer_types": LAYER_TYPES, **WINDOW}),
    "qwen2, window unused": ("qwen2", {"use_sliding_window": False, **WINDOW}),
    "qwen3, listed": ("qwen3", {"use_sliding_window": True, "layer_types": LAYER_TYPES, **WINDOW}),
    "gemma3, listed": ("gemma3_text", {"layer_types": LAYER_TYPES, **WINDOW}),
    "gemma3, stretched": ("gemma3_text", {**WINDOW, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "yarn": ("qwen2", {"rope_parameters": YARN}),
    "yarn, its own factor": ("qwen3", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "yarn, mscale": ("llama", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}}),
    "yarn, betas": ("llama", {"rope_parameters": {**YARN, "beta_fast": 9, "beta_slow": 2}}),
    "yarn, untruncated": ("llama", {"rope_parameters": {**YARN, "truncate": False}}),
    "yarn, no original": ("llama", {"rope_parameters": {
        "rope_type": "yarn", "factor": 2.0, **ROPE}}),
    "llama3": ("llama", {"rope_parameters": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32, **ROPE}}),
    "linear": ("mistral", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, **ROPE}}),
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0, **ROPE}}),
    "longrope": ("llama", {"rope_parameters": LONG}),
    "longrope, its own factor": ("llama", {"rope_parameters": {**LONG, "attention_factor": 1.2}}),
    "heads of their own size": ("llama", {"head_dim": 24}),
    "no grouped heads": ("llama", {"num_key_value_heads": None}),
    "tied": ("qwen2", {"tie_word_embeddings": True}),
    "a wide epsilon": ("llama", {"rms_norm_eps": 0.1}),
    "gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
}  # fmt: skip


def compare(folder: Path, length: int = 60) -> None:
    tokens = [(17 * i + 3) % VOCAB for i in range(length)]
    want = reference_logits(reference_model(folder), tokens)
    assert relative_error(our_logits(folder, tokens), want) < 1e-3


@pytest.mark.parametrize("case", CASES)
def test_a_saved_model_computes_what_transformers_does(case: str, tmp_path: Path) -> None:
    folder = save_random(tmp_path / "m", *CASES[case])
    compare(folder)


BIASED = {"attention_bias": True, "mlp_bias": True}


def save_biased(folder: Path, model_type: str, kept: str, zeros: str = "") -> Path:
    """A model of biases; those in `zeros` are zero, and those in neither are not in the file."""
    from safetensors.numpy import load_file, save_file

    save_random(folder, model_type, BIASED)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".bias")]:
        matrix = name.split(".")[-2]
        if matrix in zeros.split():
            tensors[name] = np.zeros_like(tensors[name])
        elif matrix not in kept.split():
            del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


QKV = "q_proj k_proj v_proj"
BIASES = {
    "zeros beside": ("llama", QKV, "o_proj gate_proj up_proj down_proj"),
    "alone": ("llama", QKV, ""),
    "all zero": ("llama", "", f"{QKV} o_proj"),
    "none in the file": ("llama", "", ""),
    "with norms": ("qwen3", QKV, "o_proj"),
    "gemma": ("gemma3_text", QKV, "o_proj"),
}


@pytest.mark.parametrize("case", BIASES)
def test_biases_of_attention(case: str, tmp_path: Path) -> None:
    compare(save_biased(tmp_path / "m", *BIASES[case]))


@pytest.mark.parametrize("matrix", ["o_proj", "gate_proj", "up_proj", "down_proj"])
def test_other_biases_are_refused_unless_they_are_zero(matrix: str, tmp_path: Path) -> None:
    folder = save_biased(tmp_path / "m", "llama", f"{QKV} {matrix}")
    with pytest.raises(UnsupportedError, match=rf"{matrix}\.bias is a bias .* not zero") as caught:
        open_source(folder)
    assert "q, k and v" in (caught.value.hint or "")


def test_longrope_takes_its_short_divisors_in_a_short_context(tmp_path: Path) -> None:
    compare(save_random(tmp_path / "m", "llama", {"rope_parameters": LONG}), 30)


def test_a_mistral_with_layer_types_is_a_ministral(tmp_path: Path) -> None:
    folder = save_random(tmp_path / "m", "ministral", {"layer_types": LAYER_TYPES, **WINDOW})
    edit_config(folder, {"model_type": "mistral", "architectures": ["MistralForCausalLM"]})
    compare(folder)


OLD = {
    "yarn as Qwen advises": {
        "rope_parameters": ..., "rope_theta": 1e6,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "no theta": {"rope_parameters": ..., "rope_scaling": None},
    "theta outside": {"rope_parameters": ..., "rope_theta": 5e5},
    "dtype": {"dtype": ..., "torch_dtype": "bfloat16"},
    "null fields": {"num_key_value_heads": 2, "head_dim": 16, "layer_types": None},
}  # fmt: skip


@pytest.mark.parametrize("case", OLD)
def test_configs_of_older_versions(case: str, tmp_path: Path) -> None:
    folder = save_random(tmp_path / "m", "qwen2", {})
    edit_config(folder, OLD[case])
    compare(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "mixed"])
def test_weights_of_any_float_type_in_any_number_of_files(dtype: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = save_random(tmp_path / "m", "qwen3", {})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for i, (name, weight) in enumerate(model.named_parameters()):
        kind = ("float16", "bfloat16", "float32")[i % 3] if dtype == "mixed" else dtype
        if name != "lm_head.weight":
            weight.data = weight.data.to(getattr(torch, kind))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]) > 20
    compare(folder)


def rename(folder: Path, change: Any) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    renamed = {change(name): value for name, value in tensors.items()}
    renamed["vision_tower.patch.weight"] = np.zeros((2, 3, 4, 4), np.float32)
    renamed["multi_modal_projector.linear.weight"] = np.zeros((2, 3), np.int32)
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


PREFIXES = {
    "none": lambda name: name.removeprefix("model."),
    "language_model": lambda name: f"language_model.{name}",
    "model.language_model": lambda name: name.replace("model.", "model.language_model."),
    "model.text_model": lambda name: name.replace("model.", "model.text_model."),
    "no second model": lambda name: f"language_model.{name.removeprefix('model.')}",
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("tied", [True, False])
def test_weights_under_any_prefix_beside_a_vision_tower(
    prefix: str, tied: bool, tmp_path: Path
) -> None:
    folder = save_random(tmp_path / "m", "llama", {"tie_word_embeddings": tied})
    tokens = [(7 * i + 1) % VOCAB for i in range(20)]
    want = reference_logits(reference_model(folder), tokens)
    rename(folder, PREFIXES[prefix])
    inner = json.loads((folder / "config.json").read_text())
    config = {"model_type": "llava", "text_config": inner, "vision_config": {"hidden_size": 9}}
    (folder / "config.json").write_text(json.dumps(config))
    assert relative_error(our_logits(folder, tokens), want) < 1e-3
    assert open_source(folder).passed_over == 2


TEXT = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 64}  # fmt: skip
SMALL_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                "num_attention_heads": 2, "image_size": 32, "patch_size": 16}  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
MULTIMODAL: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": {**TEXT, "sliding_window": 7}, "vision_config": SMALL_VISION,
               "mm_tokens_per_image": 4},
    "llava": {"text_config": {**TEXT, "model_type": "llama"},
              "vision_config": {**SMALL_VISION, "model_type": "clip_vision_model"}},
    "mistral3": {"text_config": {**TEXT, "model_type": "mistral", "sliding_window": None},
                 "vision_config": {**SMALL_VISION, "model_type": "pixtral", "head_dim": 16}},
    "smolvlm": {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": SMALL_VISION},
    "qwen2_vl": {"text_config": {**TEXT, "rope_parameters": MROPE},
                 "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64,
                                   "num_heads": 2, "mlp_ratio": 2}},
    "qwen2_5_vl": {"text_config": {**TEXT, "rope_parameters": MROPE},
                   "vision_config": {"depth": 1, "hidden_size": 32, "out_hidden_size": 64,
                                     "num_heads": 2, "intermediate_size": 48}},
}  # fmt: skip


@pytest.mark.parametrize("model_type", MULTIMODAL)
def test_the_text_of_a_model_that_sees(model_type: str, tmp_path: Path) -> None:
    import torch
    import transformers
    from saved_models import save_model

    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(model_type, **MULTIMODAL[model_type])
    model = transformers.AutoModelForImageTextToText.from_config(config)
    folder = save_model(tmp_path / "m", model.eval())
    tokens = [(7 * i + 1) % (VOCAB - 1) for i in range(40)]
    with torch.no_grad():
        want = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    assert relative_error(our_logits(folder, tokens), want) < 1e-3
    assert open_source(folder).passed_over


PHI_LONG = {**LONG, "partial_rotary_factor": 0.75,
            "short_factor": LONG["short_factor"][:6],
            "long_factor": LONG["long_factor"][:6]}  # fmt: skip
PHI: dict[str, dict[str, Any]] = {
    "whole heads": {"head_dim": 16},
    "a part of each head": {"rope_parameters": {"partial_rotary_factor": 0.75, **ROPE}},
    "longrope": {"rope_parameters": PHI_LONG, "original_max_position_embeddings": 32},
    "tied, windowed": {"tie_word_embeddings": True, **WINDOW},
}  # fmt: skip


@pytest.mark.parametrize("case", PHI)
def test_phi(case: str, tmp_path: Path) -> None:
    folder = save_random(tmp_path / "m", "phi3", {"pad_token_id": 0, **PHI[case]})
    compare(folder)
