"""Hugging Face folders that are damaged, hostile or no model: one clear error each."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_source import packed
from store_models import HIDDEN, folder_config, write_folder

from picoedge.errors import ModelError, UnsupportedError
from picoedge.store.sources.source import open_source


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
