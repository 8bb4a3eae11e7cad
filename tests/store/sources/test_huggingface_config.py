"""Configs of Hugging Face folders: understood in all their manners, or refused."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_models import folder_config, write_folder

from picoedge.config import ModelConfig
from picoedge.errors import ModelError, PicoedgeError, UnsupportedError
from picoedge.store.sources.source import open_source

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")


def config_with(folder: Path, model_type: str, changes: dict[str, Any]) -> ModelConfig:
    """The config of a folder whose `config.json` has `changes` (... takes a field away)."""
    write_folder(folder, model_type, tied=True, config=changes)
    return open_source(folder).config


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


def test_fields_that_a_config_leaves_out_have_their_family_s_defaults(tmp_path: Path) -> None:
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
def test_a_model_that_the_forward_pass_would_get_wrong_is_refused(
    tmp_path: Path, case: str
) -> None:
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
