"""GGUF files that are refused: models we would get wrong, and hostile bytes."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed_source import packed
from store_models import HIDDEN, write_gguf

from picoedge.errors import ModelError, PicoedgeError, UnsupportedError
from picoedge.store.sources.gguf import read_gguf
from picoedge.store.sources.source import open_source

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "architecture": ("gemma2", {}, "gemma2"),
    "experts": ("llama", {"llama.expert_count": 8}, "expert_count"),
    "an unknown scaling": ("qwen2", {"qwen2.rope.scaling.type": "spiral"}, "spiral"),
    "longrope": ("llama", {"llama.rope.scaling.type": "longrope"}, "longrope"),
    "softcap": ("gemma3", {"gemma3.final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "partial rotation": ("llama", {"llama.rope.dimension_count": 32}, "rope.dimension_count"),
    "not causal": ("qwen3", {"qwen3.attention.causal": False}, "causal"),
    "uneven heads": ("llama", {"llama.attention.head_count_kv": [2, 4]}, "head_count_kv"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_the_forward_pass_would_get_wrong_is_refused(
    tmp_path: Path, case: str
) -> None:
    architecture, keys, named = REFUSED[case]
    path = tmp_path / "m.gguf"
    write_gguf(path, architecture=architecture, keys=keys)
    with pytest.raises(UnsupportedError, match=named) as caught:
        open_source(path)
    assert "supported" in caught.value.hint


def test_a_tensor_nothing_reads_is_refused_by_name(tmp_path: Path) -> None:
    name, bias = "blk.0.attn_output.bias", np.zeros(HIDDEN, np.float32)
    write_gguf(tmp_path / "m.gguf", tensors={name: bias})
    assert open_source(tmp_path / "m.gguf").name == "m"  # a bias of zeros changes nothing
    bias[-1] = 1e-9
    write_gguf(tmp_path / "m.gguf", tensors={name: bias})
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_output\.bias is a bias"):
        open_source(tmp_path / "m.gguf")
    write_gguf(tmp_path / "m.gguf", tensors={"blk.0.attn_gate.weight": bias})
    with pytest.raises(UnsupportedError, match=r"attn_gate\.weight is not part"):
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
    "another kind": (b"RIFF" + PADDING, "not a GGUF"),
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
