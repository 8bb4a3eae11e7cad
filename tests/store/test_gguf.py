"""GGUF files: packed and read back, understood, or refused."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
    write_gguf,
)

from picoedge.errors import ModelError, PicoedgeError, UnsupportedError
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.gguf import read_gguf
from picoedge.store.sources.source import open_source

STORED = {
    "q": ("attn_q", 0), "k": ("attn_k", 0), "v": ("attn_v", 0), "o": ("attn_output", 1),
    "gate": ("ffn_gate", 0), "up": ("ffn_up", 0), "down": ("ffn_down", 1),
}  # fmt: skip


def packed(source: Path, bits: int | None = None) -> Pack:
    target = source.with_suffix(".pico")
    pack_source(open_source(source), target, bits=bits)
    return Pack.open(target)


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


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "architecture": ("gemma2", {}, "gemma2"),
    "experts": ("llama", {"llama.expert_count": 8}, "expert_count"),
    "yarn": ("qwen2", {"qwen2.rope.scaling.type": "yarn"}, "yarn"),
    "longrope": ("llama", {"llama.rope.scaling.type": "longrope"}, "longrope"),
    "softcap": ("gemma3", {"gemma3.final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "partial rotation": ("llama", {"llama.rope.dimension_count": 32}, "rope.dimension_count"),
    "not causal": ("qwen3", {"qwen3.attention.causal": False}, "causal"),
    "uneven heads": ("llama", {"llama.attention.head_count_kv": [2, 4]}, "head_count_kv"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_forward_pass_would_get_wrong_is_refused(tmp_path: Path, case: str) -> None:
    architecture, keys, named = REFUSED[case]
    path = tmp_path / "m.gguf"
    write_gguf(path, architecture=architecture, keys=keys)
    with pytest.raises(UnsupportedError, match=named) as caught:
        open_source(path)
    assert "supported" in caught.value.hint


def test_a_tensor_nothing_reads_is_refused_by_name(tmp_path: Path) -> None:
    bias = np.zeros(HIDDEN, np.float32)
    write_gguf(tmp_path / "m.gguf", tensors={"blk.0.attn_output.bias": bias})
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_output\.bias"):
        open_source(tmp_path / "m.gguf")


def test_missing_tensors_keys_and_wrong_shapes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, without=("blk.1.ffn_up.weight",))
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight is missing"):
        packed(path)
    write_gguf(path, keys={"llama.feed_forward_length": 768})
    with pytest.raises(ModelError, match=r"ffn_gate\.weight has shape"):
        packed(path)
    write_gguf(path, keys={"llama.block_count": 2**31 - 1})
    with pytest.raises(ModelError, match="2147483647 layers"):
        open_source(path)
    wrong = {"attention.head_count": 0, "rope.freq_base": -1.0, "block_count": "x"}
    for key, value in wrong.items():
        write_gguf(path, keys={f"llama.{key}": value})
        with pytest.raises(ModelError, match=key):
            open_source(path)
    assert not (tmp_path / "m.pico").exists()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K", "IQ4_NL"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_with_the_tensors_name(
    tmp_path: Path, kind: str, bad: float
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"blk.1.ffn_up.weight": kind})
    tensor = read_gguf(path).tensors["blk.1.ffn_up.weight"]
    at = {"Q6_K": 208}.get(kind, 0)  # of the first block's scale
    if kind == "F32":
        value = struct.pack("<f", bad)
    elif kind == "BF16":
        value = struct.pack("<f", bad)[2:]
    else:
        value = np.float16(bad).tobytes()
    data = bytearray(path.read_bytes())
    row = tensor.nbytes // tensor.shape[0]
    start = tensor.offset + 300 * row + at
    data[start : start + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight .*NaN or infinity"):
        packed(path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_columns_that_cut_blocks_are_refused_or_kept_in_f32(tmp_path: Path) -> None:
    keys = {"llama.attention.head_count": 32, "llama.attention.head_count_kv": 16,
            "llama.attention.key_length": 8, "llama.attention.value_length": 8}  # fmt: skip
    write_gguf(tmp_path / "m.gguf", "F32", keys=keys)
    opened = packed(tmp_path / "m.gguf", 8)
    assert opened.mapped("attention", 0)["o"].spec.format.name == "f32"
    assert opened.mapped("attention", 0)["q"].spec.format.name == "q8"
    write_gguf(tmp_path / "n.gguf", "Q8_0", keys=keys)
    with pytest.raises(UnsupportedError, match=r"attn_output\.weight is Q8_0"):
        packed(tmp_path / "n.gguf")


# Split files


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


# Hostile headers


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def row(name: str = "t", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


PADDING = bytes(4096)
HOSTILE = {
    "empty": (b"", "not a GGUF"),
    "another kind": (b"PK\3\4" + PADDING, "not a GGUF"),
    "cut in the magic": (b"GGU", "not a GGUF"),
    "version 1": (header(1) + PADDING, "version 1"),
    "version 99": (header(99) + PADDING, "version 99"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + PADDING, "big-endian"),
    "absurd tensor count": (header(tensors=2**63) + PADDING, "9223372036854775808 tensors"),
    "absurd key count": (header(keys=2**40) + PADDING, "keys"),
    "more tensors than file": (header(tensors=60000) + PADDING, "claims 60000 tensors"),
    "absurd key length": (header(keys=1, rest=struct.pack("<Q", 2**62)) + PADDING, "bytes of text"),
    "absurd string": (
        header(keys=1, rest=text("k") + struct.pack("<IQ", 8, 2**40)) + PADDING, "bytes of text"),
    "absurd array": (
        header(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 4, 2**61)) + PADDING, "items"),
    "array past the end": (
        header(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 10, 4000)) + PADDING, "within"),
    "texts past the end": (
        header(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 8, 4000)) + PADDING, "within"),
    "array of arrays": (
        header(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 9, 1)) + PADDING, "type 9"),
    "unknown value type": (
        header(keys=1, rest=text("k") + struct.pack("<I", 77)) + PADDING, "unknown type 77"),
    "a key twice": (
        header(keys=2, rest=(text("k") + struct.pack("<IB", 0, 1)) * 2) + PADDING, "k twice"),
    "no dimensions": (header(tensors=1, rest=row(dims=())) + PADDING, "0 dimensions"),
    "nine dimensions": (header(tensors=1, rest=row(dims=(1,) * 9)) + PADDING, "9 dimensions"),
    "absurd dimensions": (header(tensors=1, rest=row(dims=(2**40, 2**40))) + PADDING, "shape"),
    "zero dimension": (header(tensors=1, rest=row(dims=(32, 0))) + PADDING, "shape"),
    "tensor past the end": (header(tensors=1, rest=row(dims=(2**30,))) + PADDING, "would end"),
    "offset past the end": (header(tensors=1, rest=row(offset=2**40)) + PADDING, "would end"),
    "offset not aligned": (header(tensors=1, rest=row(offset=33)) + PADDING, "multiple of 32"),
    "part of a block": (header(tensors=1, rest=row(dims=(33,), kind=2)) + PADDING, "multiples"),
    "unknown tensor type": (header(tensors=1, rest=row(kind=250)) + PADDING, "number 250"),
    "a tensor twice": (header(tensors=2, rest=row() * 2) + PADDING, "t is there twice"),
    "zero alignment": (
        header(tensors=1, keys=1, rest=text("general.alignment") + struct.pack("<II", 4, 0) + row())
        + PADDING, "alignment"),
    "no keys at all": (header() + PADDING, "architecture None"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_get_one_clear_error(tmp_path: Path, case: str) -> None:
    data, message = HOSTILE[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message) as caught:
        open_source(path)
    assert str(path) in caught.value.message or "tensor t" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("parts", ["00001-of-00000", "00000-of-00000", "00000-of-00002",
                                   "00003-of-00002", "99999-of-00001"])  # fmt: skip
def test_a_part_that_cannot_be_is_refused(tmp_path: Path, parts: str) -> None:
    path = tmp_path / f"m-{parts}.gguf"
    write_gguf(path, "Q4_0")
    for name in ("m-00001-of-00001.gguf", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"):
        write_gguf(tmp_path / name, "Q4_0")
    with pytest.raises(ModelError, match="is part") as caught:
        open_source(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, "Q4_0")
    data = path.read_bytes()
    start = min(t.offset for t in read_gguf(path).tensors.values())
    cuts = [*range(0, start, 97), start, start + 1, (start + len(data)) // 2, len(data) - 33]
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(ModelError):
            open_source(path)


def test_millions_of_empty_texts_do_not_hang(tmp_path: Path) -> None:
    count = (1 << 22) - 1
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(header(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 8, count)))
        file.truncate(8 * count + 4096)
    started = time.process_time()
    with pytest.raises(ModelError):
        open_source(path)
    assert time.process_time() - started < 10


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
                        min_size=1, max_size=4))  # fmt: skip
def test_changed_bytes_are_refused_or_harmless(
    tmp_path: Path, changes: list[tuple[float, int]]
) -> None:
    path = tmp_path / "sound.gguf"
    if not path.exists():
        write_gguf(path, "Q4_0", keys={"tokenizer.ggml.tokens": ["a"]})
    data = bytearray(path.read_bytes())
    start = min(t.offset for t in read_gguf(path).tensors.values())
    for where, value in changes:
        data[int(where * start)] = value
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(data)
    try:
        source = open_source(changed)
        for key in source.metadata:
            source.metadata[key]
    except PicoedgeError:
        pass


@pytest.mark.parametrize("name", ["nothing.gguf", "nothing/at/all"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        open_source(tmp_path / name)


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
