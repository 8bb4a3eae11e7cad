"""Hugging Face folders: packed and read back, understood, or refused."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from store_models import HIDDEN, LAYERS, VOCAB, folder_config, whole, write_folder

from picoedge.config import ModelConfig
from picoedge.errors import ModelError, PicoedgeError, UnsupportedError
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import open_source

STORED = {
    "q": ("self_attn.q_proj", 0), "k": ("self_attn.k_proj", 0), "v": ("self_attn.v_proj", 0),
    "o": ("self_attn.o_proj", 1), "gate": ("mlp.gate_proj", 0), "up": ("mlp.up_proj", 0),
    "down": ("mlp.down_proj", 1),
}  # fmt: skip
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")


def packed(folder: Path, bits: int = 32) -> Pack:
    target = folder.with_suffix(".pico")
    pack_source(open_source(folder), target, bits=bits)
    return Pack.open(target)


def config_with(folder: Path, model_type: str, changes: dict[str, Any]) -> ModelConfig:
    """The config of a folder whose `config.json` has `changes` (... takes a field away)."""
    write_folder(folder, model_type, tied=True, config=changes)
    return open_source(folder).config


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_pack_in_f32_holds_the_folders_weights(
    tmp_path: Path, model_type: str, tied: bool
) -> None:
    values = write_folder(tmp_path / "m", model_type, tied=tied)
    opened = packed(tmp_path / "m")
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
    norms = packed(tmp_path / "llama").norms(1)
    second = values["model.layers.1.post_attention_layernorm.weight"]
    assert np.array_equal(norms["pre_ffn_norm"], second)  # despite its name there
    values = write_folder(tmp_path / "gemma", "gemma3_text")
    opened = packed(tmp_path / "gemma")
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
    opened = packed(tmp_path / "m")
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
    up = whole(packed(tmp_path / "m").mapped("ffn", 1)["up"], 0)
    assert np.array_equal(up, halves["model.layers.1.mlp.up_proj.weight"].float().numpy())


def test_indexed_files_are_read_together(tmp_path: Path) -> None:
    values = write_folder(tmp_path / "m", files=3)
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "m" / "consolidated.safetensors")
    up = whole(packed(tmp_path / "m").mapped("ffn", 1)["up"], 0)
    assert np.array_equal(up, values["model.layers.1.mlp.up_proj.weight"])
    (tmp_path / "m" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.safetensors"):
        open_source(tmp_path / "m")


def test_several_files_without_an_index_are_read_together(tmp_path: Path) -> None:
    values = write_folder(tmp_path / "m", files=2)
    (tmp_path / "m" / "model.safetensors.index.json").unlink()
    gate = whole(packed(tmp_path / "m").mapped("ffn", 0)["gate"], 0)
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
    opened = packed(tmp_path / "m")
    down = values[f"{prefix}layers.1.mlp.down_proj.weight"]
    assert np.array_equal(whole(opened.mapped("ffn", 1)["down"], 1), down)
    assert opened.config.attention_scale == pytest.approx(0.1)


def test_rope_in_the_old_and_the_new_manner(tmp_path: Path) -> None:
    scaled = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 64}  # fmt: skip
    old = config_with(tmp_path / "a", "llama", {"rope_scaling": {"rope_type": "llama3", **scaled}})
    new = config_with(
        tmp_path / "b", "llama",
        {"rope_theta": ...,
         "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e4, **scaled}},
    )  # fmt: skip
    assert old == new
    assert (old.rope_theta, old.rope_scaling.kind, old.rope_scaling.factor) == (5e4, "llama3", 8.0)
    flat = {**scaled, "rope_type": "llama3", "low_freq_factor": 4.0}
    with pytest.raises(ModelError, match=r"low_freq_factor 4\.0 is not below"):
        config_with(tmp_path / "d", "llama", {"rope_scaling": flat})
    linear = config_with(tmp_path / "c", "llama", {"rope_scaling": {"type": "linear", "factor": 2}})
    assert (linear.rope_scaling.kind, linear.rope_scaling.factor) == ("linear", 2.0)


def test_gemmas_two_rope_bases_in_the_old_and_the_new_manner(tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "factor": 8.0}
    old = config_with(
        tmp_path / "a", "gemma3_text",
        {"rope_theta": 1e6, "rope_local_base_freq": 9e3, "rope_scaling": linear},
    )  # fmt: skip
    both = {"full_attention": {**linear, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 9e3}}  # fmt: skip
    new = config_with(tmp_path / "b", "gemma3_text", {"rope_parameters": both})
    assert old == new
    assert (old.rope_theta, old.rope_local_theta, old.rope_scaling.factor) == (1e6, 9e3, 8.0)


def test_gemma_config(tmp_path: Path) -> None:
    config = config_with(tmp_path / "a", "gemma3_text", {"sliding_window_pattern": 2})
    assert (config.embed_scale, config.attention_scale) == (16.0, pytest.approx(0.1))
    assert (config.hidden_act, config.windowed_layers) == ("gelu_tanh", (0,))
    assert (config.rope_theta, config.rope_local_theta) == (1e6, 1e4)
    types = ["full_attention", "sliding_attention"]
    config = config_with(tmp_path / "b", "gemma3_text", {"layer_types": types})
    assert config.windowed_layers == (1,)


def test_windows(tmp_path: Path) -> None:
    windowed = config_with(tmp_path / "a", "mistral", {"sliding_window": 32})
    assert (windowed.sliding_window, windowed.windowed_layers) == (32, (0, 1))
    assert windowed.rope_local_theta == windowed.rope_theta
    assert config_with(tmp_path / "b", "mistral", {"sliding_window": None}).windowed_layers == ()
    unused = {"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 1}
    assert config_with(tmp_path / "c", "qwen2", unused).windowed_layers == ()
    used = {**unused, "use_sliding_window": True}
    assert config_with(tmp_path / "d", "qwen2", used).windowed_layers == (1,)


def test_what_a_config_leaves_out_has_its_familys_default(tmp_path: Path) -> None:
    left_out = dict.fromkeys(("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta"), ...)
    write_folder(tmp_path / "a", "llama", config={**left_out, "num_attention_heads": 2})
    config = open_source(tmp_path / "a").config
    assert (config.num_key_value_heads, config.head_dim, config.rope_theta) == (2, 128, 1e4)
    write_folder(tmp_path / "b", "gemma3_text", tied=True, config={"tie_word_embeddings": ...})
    assert open_source(tmp_path / "b").config.tie_word_embeddings


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "model type": ("llama", {"model_type": "gpt2"}, "gpt2"),
    "no model type": ("llama", {"model_type": ...}, "None"),
    "gemma2": ("gemma3_text", {"model_type": "gemma2"}, "gemma2"),
    "mixture": ("llama", {"model_type": "mixtral"}, "mixtral"),
    "classifier": ("llama", {"architectures": ["LlamaForSequenceX"]}, "SequenceX"),
    "an unknown scaling": ("qwen2", {"rope_scaling": {"type": "spiral", "factor": 4.0}}, "spiral"),
    "softcap": ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "activation": ("llama", {"hidden_act": "relu"}, "relu"),
    "bidirectional": ("gemma3_text", {"use_bidirectional_attention": True}, "bidirectional"),
    "partial rotation": ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "quantized": ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization"),
    "layer types": (
        "qwen3", {"use_sliding_window": True, "layer_types": ["a", "b"]}, "layer_types"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_forward_pass_would_get_wrong_is_refused(tmp_path: Path, case: str) -> None:
    model_type, changes, named = REFUSED[case]
    write_folder(tmp_path, model_type, config=changes)
    with pytest.raises(UnsupportedError, match=named) as caught:
        open_source(tmp_path)
    assert "supported" in caught.value.hint
    assert "config.json" in caught.value.message


WRONG: dict[str, Any] = {
    "hidden_size": -256, "num_attention_heads": 0, "num_hidden_layers": 2**31 - 1,
    "vocab_size": "300", "rope_theta": -1, "head_dim": 63, "num_key_value_heads": 3,
    "rms_norm_eps": 10**400, "rope_scaling": 7, "tie_word_embeddings": 1,
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_field_is_a_clear_error(tmp_path: Path, field: str) -> None:
    write_folder(tmp_path, config={field: WRONG[field]})
    with pytest.raises(ModelError):
        open_source(tmp_path)


def test_tensors_that_are_missing_unknown_or_misshapen_are_named(tmp_path: Path) -> None:
    folder, name = tmp_path / "m", "model.layers.1.mlp.up_proj.weight"
    write_folder(folder, without=(name,))
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        packed(folder)
    write_folder(folder, extra={name: np.zeros((3, HIDDEN), np.float32)})
    with pytest.raises(ModelError, match=r"up_proj\.weight has shape \(3, 256\)"):
        packed(folder)
    write_folder(folder, extra={"model.layers.0.self_attn.o_proj.bias": np.ones(4, np.float32)})
    with pytest.raises(UnsupportedError, match=r"o_proj\.bias"):
        open_source(folder)
    write_folder(folder, extra={name: np.zeros((512, HIDDEN), np.float64)})
    with pytest.raises(UnsupportedError, match=r"up_proj\.weight has dtype F64"):
        open_source(folder)
    write_folder(folder, without=("lm_head.weight",))
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        packed(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_pickles_are_refused_with_the_remedy(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match="pickle") as caught:
        open_source(tmp_path)
    assert "safetensors" in caught.value.hint


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        open_source(tmp_path)
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ModelError) as caught:
        open_source(tmp_path)
    assert "x.gguf" in caught.value.hint
    (tmp_path / "config.json").write_text(json.dumps(folder_config("llama", False)))
    with pytest.raises(ModelError, match=r"no \.safetensors"):
        open_source(tmp_path)


@pytest.mark.parametrize("content", ["", "[", "[1]", "7", "[" * 100_000, "\x00\xff", '{"a": NaN'])
def test_json_that_is_none(tmp_path: Path, content: str) -> None:
    write_folder(tmp_path)
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelError, match=r"config\.json"):
        open_source(tmp_path)


def entry(**changes: Any) -> bytes:
    fields = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}
    return json.dumps({"model.embed_tokens.weight": fields}).encode()


HOSTILE = {
    "empty": b"",
    "short": b"\x08\0\0",
    "absurd header": struct.pack("<Q", 2**62) + bytes(100),
    "header past the end": struct.pack("<Q", 200) + bytes(100),
    "not JSON": struct.pack("<Q", 100) + bytes(100),
    "a list": struct.pack("<Q", 2) + b"[]",
    "deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
}
HOSTILE |= {
    name: struct.pack("<Q", len(body)) + body + bytes(16)
    for name, body in {
        "data past the end": entry(data_offsets=[0, 17]),
        "absurd offsets": entry(data_offsets=[0, 2**70]),
        "negative offset": entry(data_offsets=[-4, 12]),
        "turned offsets": entry(data_offsets=[16, 0]),
        "three offsets": entry(data_offsets=[0, 8, 16]),
        "offsets of text": entry(data_offsets=["0", "16"]),
        "shape of floats": entry(shape=[4.0]),
        "a bool in the shape": entry(shape=[True]),
        "negative shape": entry(shape=[-4]),
        "shape and size disagree": entry(shape=[5]),
        "no dtype": entry(dtype=None),
        "an entry of text": b'{"x": "y"}',
    }.items()
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_get_one_clear_error(tmp_path: Path, case: str) -> None:
    write_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(HOSTILE[case])
    with pytest.raises(ModelError) as caught:
        open_source(tmp_path)
    assert "model.safetensors" in caught.value.message
    assert caught.value.hint


def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "m", files=1)
    index = tmp_path / "m" / "model.safetensors.index.json"
    for name in ("../x.safetensors", "/etc/passwd", "a/b.safetensors", "", 7):
        index.write_text(json.dumps({"weight_map": {"t": name}}))
        with pytest.raises(ModelError, match=r"index\.json"):
            open_source(tmp_path / "m")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    for cut in (1, 9, 500, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:cut])
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            open_source(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
FIELDS = [*folder_config("gemma3_text", True), "layer_types", "rope_scaling", "rope_parameters",
          "text_config", "architectures", "sliding_window_pattern", "rope_local_base_freq",
          "use_sliding_window", "partial_rotary_factor", "hidden_activation"]  # fmt: skip


@settings(max_examples=200, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.sampled_from(FAMILIES), st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3))
def test_any_config_is_read_or_refused(
    tmp_path: Path, model_type: str, changes: dict[str, Any]
) -> None:
    if not (tmp_path / "model.safetensors").exists():
        write_folder(tmp_path)
    values = {**folder_config(model_type, False), **changes}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with suppress(PicoedgeError):
        open_source(tmp_path)


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
    assert packed(tmp_path / "m").sampling == expected
