"""GGUF files: packed and read back, and understood."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from packed_source import packed
from store_models import (
    EXACT,
    HEAD_DIM,
    HIDDEN,
    LAYERS,
    VOCAB,
    as_floats,
    gguf_shapes,
    random_rows,
    whole,
    write_folder,
    write_gguf,
)

from picoedge.config import UNTURNED
from picoedge.errors import ModelError
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import open_source

STORED = {
    "q": ("attn_q", 0), "k": ("attn_k", 0), "v": ("attn_v", 0), "o": ("attn_output", 1),
    "gate": ("ffn_gate", 0), "up": ("ffn_up", 0), "down": ("ffn_down", 1),
}  # fmt: skip


def half_split(values: np.ndarray) -> np.ndarray:
    """Rows of one head at a time from rope pairs side by side to halves, the slow way."""
    out = np.empty_like(values)
    for head in range(0, len(values), HEAD_DIM):
        for i in range(HEAD_DIM // 2):
            out[head + i] = values[head + 2 * i]
            out[head + HEAD_DIM // 2 + i] = values[head + 2 * i + 1]
    return out


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("tied", [True, False])
def test_a_pack_holds_exactly_the_weights_of_its_gguf(
    tmp_path: Path, kind: str, tied: bool
) -> None:
    values = write_gguf(tmp_path / "m.gguf", kind, tied=tied)
    opened = packed(tmp_path / "m.gguf")
    opened.verify()
    for layer in range(LAYERS):
        weights = {**opened.mapped("attention", layer), **opened.mapped("ffn", layer)}
        for name, (stored, axis) in STORED.items():
            expected = values[f"blk.{layer}.{stored}.weight"]
            expected = half_split(expected) if name in "qk" else expected
            assert np.array_equal(whole(weights[name], axis), expected), name
        norms = opened.norms(layer)
        assert np.array_equal(norms["input_norm"], values[f"blk.{layer}.attn_norm.weight"])
        assert np.array_equal(norms["pre_ffn_norm"], values[f"blk.{layer}.ffn_norm.weight"])
    assert np.array_equal(opened.final_norm, values["output_norm.weight"])
    head = whole(opened.head(), 0)
    assert np.array_equal(head[:VOCAB], values["token_embd.weight" if tied else "output.weight"])
    assert not head[VOCAB:].any()


@pytest.mark.parametrize("kind", [*EXACT, "F32"])
def test_rows_of_an_untied_embedding_are_gathered_exactly(tmp_path: Path, kind: str) -> None:
    values = write_gguf(tmp_path / "m.gguf", kind, tied=False)
    opened = packed(tmp_path / "m.gguf", bits=32)
    ids = [0, VOCAB - 1, 7, 7]
    out = np.zeros((6, HIDDEN), np.float32)
    opened.embedding.gather(ids, out)
    assert np.array_equal(out[:4], values["token_embd.weight"][ids])
    assert not out[4:].any()
    assert (tmp_path / "m.pico" / "embed.safetensors").exists()


def test_a_tied_embedding_is_the_head_and_not_stored_twice(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "Q8_0")
    opened = packed(tmp_path / "m.gguf")
    assert opened.embedding.spec == opened.head().spec
    assert not (tmp_path / "m.pico" / "embed.safetensors").exists()


@pytest.mark.parametrize("kind", ["Q2_K", "IQ4_XS", "IQ4_NL", "IQ2_XXS", "TQ2_0", "MXFP4"])
def test_codebook_types_are_requantized_closely(tmp_path: Path, kind: str) -> None:
    values = write_gguf(tmp_path / "m.gguf", kind, tied=False)
    opened = packed(tmp_path / "m.gguf")
    for name, (stored, axis) in STORED.items():
        got = whole({**opened.mapped("attention", 1), **opened.mapped("ffn", 1)}[name], axis)
        expected = values[f"blk.1.{stored}.weight"]
        expected = half_split(expected) if name in "qk" else expected
        error = np.square(got - expected).sum() / np.square(expected).sum()
        assert error**0.5 < 0.015, name


@pytest.mark.parametrize(("bits", "limit"), [(None, 0.01), (4, 0.1), (5, 0.05), (6, 0.03), (32, 0)])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_float_sources_are_packed_as_asked(
    tmp_path: Path, kind: str, bits: int | None, limit: float
) -> None:
    values = write_gguf(tmp_path / "m.gguf", kind)
    opened = packed(tmp_path / "m.gguf", bits)
    got, expected = whole(opened.mapped("ffn", 0)["down"], 1), values["blk.0.ffn_down.weight"]
    error = np.square(got - expected).sum() / np.square(expected).sum()
    assert error**0.5 <= limit
    assert opened.mapped("ffn", 0)["down"].spec.format.bits == (8 if bits is None else bits)


def test_a_mixture_of_types_keeps_each_matrix_in_its_own(tmp_path: Path) -> None:
    kinds = {"attn_q.weight": "Q5_0", "ffn_down.weight": "Q6_K", "token_embd.weight": "Q8_0",
             "attn_v.weight": "Q8_0", "attn_output.weight": "Q4_K"}  # fmt: skip
    write_gguf(tmp_path / "m.gguf", kinds, architecture="gemma3")
    opened = packed(tmp_path / "m.gguf", 4)
    weights = {**opened.mapped("attention", 0), **opened.mapped("ffn", 0), "head": opened.head()}
    assert {name: w.spec.format.name for name, w in weights.items()} == {
        "q": "q5", "k": "q4m", "v": "q8", "o": "q4k", "gate": "q4m", "up": "q4m", "down": "q6k",
        "head": "q8",
    }  # fmt: skip


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma3"])
def test_only_llama_rows_are_reordered_and_norms_stay_as_they_are(
    tmp_path: Path, architecture: str
) -> None:
    values = write_gguf(tmp_path / "m.gguf", "Q8_0", architecture=architecture)
    opened = packed(tmp_path / "m.gguf")
    weights = opened.mapped("attention", 1)
    assert np.array_equal(whole(weights["q"], 0), values["blk.1.attn_q.weight"])
    assert np.array_equal(whole(weights["k"], 0), values["blk.1.attn_k.weight"])
    norms = opened.norms(1)
    if architecture in ("qwen3", "gemma3"):
        assert np.array_equal(norms["k_norm"], values["blk.1.attn_k_norm.weight"])
    if architecture == "gemma3":
        post = values["blk.1.post_attention_norm.weight"]
        assert np.array_equal(norms["post_attention_norm"], post)
        assert np.array_equal(norms["post_ffn_norm"], values["blk.1.post_ffw_norm.weight"])


def test_biases_follow_their_rows(tmp_path: Path) -> None:
    values = write_gguf(tmp_path / "m.gguf", "Q8_0", architecture="qwen2")
    opened = packed(tmp_path / "m.gguf")
    assert opened.config.qkv_bias
    for name in "qkv":
        expected = values[f"blk.0.attn_{name}.bias"]
        assert np.array_equal(opened.biases(0)[f"{name}_bias"], expected)
        half = opened.biases(0, range(1, 2))[f"{name}_bias"]
        assert np.array_equal(half, expected[len(expected) // 2 :])
    assert np.array_equal(
        whole(opened.mapped("attention", 0, range(1, 2))["q"], 0),
        values["blk.0.attn_q.weight"][128:],
    )


def test_llama_config(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", keys={"llama.rope.scaling.type": "linear",
                                          "llama.rope.scaling.factor": 4.0})  # fmt: skip
    config = open_source(tmp_path / "m.gguf").config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (256, 2, 300)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 64)
    assert (config.rope_theta, config.rms_norm_eps) == (50000.0, pytest.approx(1e-5))
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("linear", 4.0)
    assert config.tie_word_embeddings
    assert (config.qk_norm, config.sandwich_norm, config.windowed_layers) == (False, False, ())


def test_gemma_config(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", architecture="gemma3")
    config = open_source(tmp_path / "m.gguf").config
    assert (config.hidden_act, config.embed_scale) == ("gelu_tanh", 16.0)
    assert (config.sandwich_norm, config.qk_norm) == (True, True)
    assert (config.sliding_window, config.windowed_layers) == (16, (0, 1))
    assert (config.rope_theta, config.rope_local_theta) == (50000.0, 10000.0)
    assert config.attention_scale in (0.0, HEAD_DIM**-0.5)


@pytest.mark.parametrize("window", [None, 0])
def test_a_gemma_without_a_window_sees_all_positions(tmp_path: Path, window: int | None) -> None:
    """As in llama.cpp; exporters of models without a window write 0, or leave the key out."""
    keys = {"gemma3.attention.sliding_window": window}
    write_gguf(tmp_path / "m.gguf", architecture="gemma3", keys=keys)
    config = open_source(tmp_path / "m.gguf").config
    assert (config.sliding_window, config.windowed_layers) == (0, ())
    assert (config.rope_theta, config.sandwich_norm) == (50000.0, True)


def test_gemma_window_pattern(gemma_gguf: Path) -> None:
    config = open_source(gemma_gguf).config
    assert set(range(18)) - set(config.windowed_layers) == {5, 11, 17}


def test_llama_3_frequencies_come_from_their_tensor(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, HEAD_DIM // 2).astype(np.float32)
    write_gguf(tmp_path / "m.gguf", tensors={"rope_freqs.weight": factors})
    config = open_source(tmp_path / "m.gguf").config
    assert config.rope_scaling.kind == "llama3"
    assert config.rope_scaling.freq_factors == tuple(factors.tolist())
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    write_gguf(tmp_path / "l.gguf", tensors={"rope_freqs.weight": factors}, keys=linear)
    config = open_source(tmp_path / "l.gguf").config
    assert config.rope_scaling.freq_factors == tuple((4 * factors).tolist())
    write_gguf(tmp_path / "n.gguf", tensors={"rope_freqs.weight": factors[:7]})
    with pytest.raises(ModelError, match="rope_freqs"):
        open_source(tmp_path / "n.gguf")


def split(path: Path, kind: str = "Q8_0") -> tuple[Path, dict[str, np.ndarray]]:
    """Write a model as one file and as two; the name of the first part."""
    names = list(gguf_shapes("llama", True))
    values = write_gguf(path / "one.gguf", kind)
    first, second = (path / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    write_gguf(first, kind, without=tuple(names[9:]))
    write_gguf(second, kind, without=tuple(names[:9]))
    return first, values


def test_split_files_are_read_as_one_from_any_part(tmp_path: Path) -> None:
    first, values = split(tmp_path)
    for part in (first, tmp_path / "m-00002-of-00002.gguf"):
        source = open_source(part)
        assert source.name == "m"
        pack_source(source, tmp_path / "m.pico")
        down = whole(Pack.open(tmp_path / "m.pico").mapped("ffn", 1)["down"], 1)
        assert np.array_equal(down, values["blk.1.ffn_down.weight"])


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first, _ = split(tmp_path)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelError, match=r"m-00002-of-00002\.gguf"):
        open_source(first)


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    first, _ = split(tmp_path)
    write_gguf(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(ModelError, match="twice"):
        open_source(first)


def test_metadata_is_read_when_asked_for(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", keys={"general.name": "Grüße", "a.flag": True, "a.n": 7})
    metadata = open_source(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.tokens"][-1] == f"token{VOCAB - 1}"
    assert metadata["tokenizer.ggml.scores"][5] == 5.0
    assert (metadata["general.name"], metadata["a.flag"], metadata["a.n"]) == ("Grüße", True, 7)
    assert "tokenizer.ggml.merges" not in metadata
    assert metadata.get("tokenizer.ggml.merges") is None


def test_the_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    before = open_source(tmp_path / "m.gguf").fingerprint
    assert open_source(tmp_path / "m.gguf").fingerprint == before
    write_gguf(tmp_path / "m.gguf", seed=1)
    assert open_source(tmp_path / "m.gguf").fingerprint != before


def test_real_rows_are_those_of_the_library(smollm2_gguf: Path) -> None:
    tensor = open_source(smollm2_gguf).tensor("layers.29.down")
    expected = as_floats("Q4_1", tensor.raw(100, 140))
    assert np.array_equal(tensor.floats(100, 140), expected)
    assert random_rows("Q4_1", 1, 32, 0).shape == (1, 20)


def test_ollamas_own_gemma_3(tmp_path: Path) -> None:
    """Vision tensors inside, no epsilon key, rope keys of its own, no scaling said."""
    vision = {name: np.zeros((2, 32), np.float32) for name in ("v.blk.0.x.weight", "mm.y.weight")}
    write_gguf(
        tmp_path / "sha256-0a1b", architecture="gemma3", tensors=vision,
        keys={"gemma3.attention.layer_norm_rms_epsilon": None, "gemma3.rope.freq_base": None,
              "gemma3.rope.local.freq_base": 9e3, "gemma3.rope.global.freq_base": 2e6,
              "gemma3.mm.tokens_per_image": 256, "gemma3.context_length": 131072},
    )  # fmt: skip
    source = open_source(tmp_path / "sha256-0a1b")
    config = source.config
    assert (config.rms_norm_eps, config.rope_theta, config.rope_local_theta) == (1e-6, 2e6, 9e3)
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("linear", 8.0)
    assert source.passed_over == 2
    assert packed(tmp_path / "sha256-0a1b").config == config


@pytest.mark.parametrize("architecture", ["qwen2vl", "qwen3vl"])
def test_the_text_of_a_model_that_sees(architecture: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", architecture=architecture)
    assert packed(tmp_path / "m.gguf").config.architecture == architecture.removesuffix("vl")


def test_yarn_is_that_of_the_folder_it_was_converted_from(tmp_path: Path) -> None:
    keys = {"qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": 4.0,
            "qwen2.rope.scaling.original_context_length": 128}  # fmt: skip
    write_gguf(tmp_path / "m.gguf", architecture="qwen2", keys=keys)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    write_folder(tmp_path / "m", "qwen2", config={"rope_scaling": scaling})
    found = open_source(tmp_path / "m.gguf").config
    assert found.rope_scaling == open_source(tmp_path / "m").config.rope_scaling
    assert found.rope_scaling.freq_factors[0] == 1.0
    assert found.rope_scaling.freq_factors[-1] == pytest.approx(4.0)
    assert packed(tmp_path / "m.gguf").config == found


def test_longrope_is_read_from_its_two_tensors(tmp_path: Path) -> None:
    short, long = (np.linspace(1, end, 32, dtype=np.float32) for end in (2, 40))
    tensors = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    keys = {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.attn_factor": 1.25,
            "llama.rope.scaling.original_context_length": 64}  # fmt: skip
    write_gguf(tmp_path / "m.gguf", tensors=tensors, keys=keys)
    scaling = packed(tmp_path / "m.gguf").config.rope_scaling
    assert scaling.freq_factors == tuple(short.tolist())
    assert scaling.long_factors == tuple(long.tolist())
    assert (scaling.attention_factor, scaling.original_max_position_embeddings) == (1.25, 64)


def test_how_a_gguf_says_it_is_sampled(tmp_path: Path) -> None:
    keys = {"general.sampling.temp": 0.625, "general.sampling.top_k": 20,
            "general.sampling.penalty_repeat": 1.25,
            "general.sampling.penalty_last_n": (1 << 31) + 1,
            "general.sampling.mirostat": 2, "general.sampling.top_p": 7.0}  # fmt: skip
    write_gguf(tmp_path / "m.gguf", keys=keys)
    expected = {"temperature": 0.625, "top_k": 20, "repeat_penalty": 1.25}
    assert open_source(tmp_path / "m.gguf").sampling == expected
    assert packed(tmp_path / "m.gguf").sampling == expected


def test_phi_has_fused_matrices_and_heads_that_turn_in_part(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = gguf_shapes("llama", True)
    q, kv = shapes["blk.0.attn_q.weight"][0], shapes["blk.0.attn_k.weight"][0]
    inner = shapes["blk.0.ffn_up.weight"][0]
    split = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")
    tensors = {}
    for i in range(LAYERS):
        for name, rows in (("attn_qkv", q + 2 * kv), ("ffn_up", 2 * inner)):
            values = rng.normal(0, 0.1, (rows, HIDDEN)).astype(np.float32)
            tensors[f"blk.{i}.{name}.weight"] = values
    divisors = np.linspace(1, 3, 24, dtype=np.float32)
    tensors |= {f"rope_factors_{kind}.weight": divisors for kind in ("long", "short")}
    write_gguf(
        tmp_path / "m.gguf", architecture="phi3", tensors=tensors,
        keys={"phi3.rope.dimension_count": 48, "phi3.rope.scaling.attn_factor": 1.25},
        without=tuple(f"blk.{i}.{name}.weight" for i in range(LAYERS) for name in split),
    )  # fmt: skip
    pack = packed(tmp_path / "m.gguf", 32)
    order = [*range(24), *range(48, 56), *range(24, 48), *range(56, 64)]
    qkv, up = tensors["blk.1.attn_qkv.weight"], tensors["blk.1.ffn_up.weight"]
    attention, ffn = pack.mapped("attention", 1), pack.mapped("ffn", 1)

    def turned(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(-1, HEAD_DIM, HIDDEN)[:, order].reshape(-1, HIDDEN)

    assert np.array_equal(whole(attention["q"], 0), turned(qkv[:q]))
    assert np.array_equal(whole(attention["k"], 0), turned(qkv[q : q + kv]))
    assert np.array_equal(whole(attention["v"], 0), qkv[q + kv :])
    assert np.array_equal(whole(ffn["gate"], 0), up[:inner])
    assert np.array_equal(whole(ffn["up"], 0), up[inner:])
    scaling = pack.config.rope_scaling
    assert (scaling.kind, scaling.attention_factor) == ("longrope", 1.25)
    assert sum(factor < UNTURNED for factor in scaling.freq_factors) == 24
