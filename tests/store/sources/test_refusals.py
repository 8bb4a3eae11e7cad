"""What people take for a model: each is named for what it is, with what to take instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from store_models import folder_config, write_folder, write_gguf

from picoedge.errors import ModelError
from picoedge.store.sources.source import open_source

FILES: dict[str, tuple[str, bytes, str, str]] = {
    "ggjt": ("ggml-model-q4_0.bin", b"tjgg\x03\0\0\0", "GGJT", "GGUF"),
    "ggml": ("m.bin", b"lmgg\0\0\0\0", "GGML", "GGUF"),
    "old adapter": ("lora.bin", b"algg\1\0\0\0", "LoRA", "merged"),
    "zip pickle": ("pytorch_model.bin", b"PK\x03\x04....", "pickles", "safetensors"),
    "raw pickle": ("model.pt", b"\x80\x02}q\0", "pickle", "safetensors"),
    "pickle, unknown": ("consolidated.00.pth", b"\0\0\0\0\0", "pickles", "GGUF"),
    "onnx": ("model.onnx", b"\x08\x07\x12\x07pytorch", "ONNX", "GGUF"),
    "lfs": ("m.gguf", b"version https://git-lfs.github.com/spec/v1\noid", "LFS", "git lfs pull"),
    "html": ("m.gguf", b"<!DOCTYPE html><html>", "web page", "download"),
    "gzip": ("m.gguf.gz", b"\x1f\x8b\x08\0", "gzip", "unpack"),
    "llamafile": ("m.llamafile", b"MZqFpD='\n", "program", "GGUF"),
    "second piece": ("m.gguf.part2of2", b"\x01\x02\x03\x04", "piece", "cat"),
    "split": ("m.Q4_K_M.gguf-split-b", b"\x01\x02\x03\x04", "piece", "cat"),
    "imatrix.dat": ("imatrix.dat", b"\x10\0\0\0\x12", "importance matrix", "GGUF"),
    "nothing known": ("notes", b"hello there", "not a GGUF", "model"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_other_files(case: str, tmp_path: Path) -> None:
    name, data, what, remedy = FILES[case]
    path = tmp_path / name
    path.write_bytes(data + bytes(64))
    with pytest.raises(ModelError, match=what) as caught:
        open_source(path)
    assert str(path) in caught.value.message
    assert remedy in caught.value.hint


def test_weights_alone_lead_to_their_folder(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with pytest.raises(ModelError, match="weights of a folder") as caught:
        open_source(tmp_path / "model.safetensors")
    assert str(tmp_path) in caught.value.hint


GGUFS: dict[str, tuple[str, dict[str, Any], str]] = {
    "mmproj by type": ("clip", {"general.type": "mmproj"}, "mmproj"),
    "mmproj by architecture": ("clip", {}, "mmproj"),
    "adapter": ("llama", {"general.type": "adapter"}, "LoRA"),
    "imatrix": ("imatrix", {"general.type": "imatrix"}, "importance matrix"),
    "bert": ("nomic-bert", {}, "embedding"),
    "pooled": ("qwen3", {"qwen3.pooling_type": 3}, "embedding"),
    "whisper": ("whisper", {}, "speech"),
    "diffusion": ("flux", {}, "image or video"),
}


@pytest.mark.parametrize("case", GGUFS)
def test_ggufs_of_another_kind(case: str, tmp_path: Path) -> None:
    architecture, keys, what = GGUFS[case]
    write_gguf(tmp_path / "m.gguf", architecture=architecture, keys=keys)
    with pytest.raises(ModelError, match=what) as caught:
        open_source(tmp_path / "m.gguf")
    assert "take" in caught.value.hint


QUANTIZED: dict[str, tuple[dict[str, Any], str]] = {
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ"),
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ"),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, "FP8"),
    "bitsandbytes": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
    "exl2": ({"quantization_config": {"quant_method": "exl2"}}, "EXL2"),
    "tensors": ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed"),
    "old tensors": ({"compression_config": {"format": "pack"}}, "quantized"),
    "unknown": ({"quantization_config": {"quant_method": "my\x1b[31m"}}, "in quantized form"),
    "mlx": ({"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
    "within": ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "AWQ"),
}  # fmt: skip


@pytest.mark.parametrize("case", QUANTIZED)
def test_quantized_folders(case: str, tmp_path: Path) -> None:
    changes, what = QUANTIZED[case]
    write_folder(tmp_path, config=changes)
    with pytest.raises(ModelError, match=what) as caught:
        open_source(tmp_path)
    assert "GGUF" in caught.value.hint
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("name", ["qweight", "weight_scale", "SCB", "weight.absmax", "scales"])
def test_quantized_tensors_that_the_config_does_not_tell_of(name: str, tmp_path: Path) -> None:
    extra = {f"model.layers.0.mlp.up_proj.{name}": np.zeros((4, 4), np.float32)}
    write_folder(tmp_path, extra=extra)
    with pytest.raises(ModelError, match="quantized") as caught:
        open_source(tmp_path)
    assert "GGUF" in caught.value.hint


def adapter(folder: Path) -> None:
    save_file({"a": np.zeros(3, np.float32)}, folder / "adapter_model.safetensors")
    config = {"base_model_name_or_path": "Qwen/Qwen3-0.6B", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def files(*names: str, config: bool = False) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("{}")
        if config:
            (folder / "config.json").write_text(json.dumps(folder_config("llama", False)))

    return write


FOLDERS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "adapter": (adapter, "LoRA adapter onto Qwen/Qwen3-0.6B", "merge"),
    "diffusers": (files("model_index.json"), "diffusers", "GGUF"),
    "sentences": (files("modules.json"), "embedding", "GGUF"),
    "onnx": (files("onnx/model.onnx"), "ONNX", "GGUF"),
    "onnx with config": (files("onnx/model.onnx", config=True), "ONNX", "GGUF"),
    "mlc": (files("mlc-chat-config.json"), "MLC", "GGUF"),
    "gptq": (files("quantize_config.json", "m.bin", config=True), "GPTQ", "GGUF"),
    "meta": (files("params.json", "consolidated.00.pth"), "own form", "GGUF"),
    "tensorflow": (files("tf_model.h5", config=True), "TensorFlow", "GGUF"),
    "pickles": (files("pytorch_model.bin", config=True), "pickles", "safetensors"),
    "gguf": (files("m.gguf", config=True), "no .safetensors", "m.gguf"),
    "nothing": (files(config=True), "no .safetensors", "get it again"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_other_folders(case: str, tmp_path: Path) -> None:
    write, what, remedy = FOLDERS[case]
    write(tmp_path)
    with pytest.raises(ModelError, match=what) as caught:
        open_source(tmp_path)
    assert remedy in caught.value.hint


def test_an_embedding_model_without_a_head_says_so(tmp_path: Path) -> None:
    write_folder(tmp_path, config={"architectures": ["LlamaModel"]}, without=("lm_head.weight",))
    with pytest.raises(ModelError, match="no language model head") as caught:
        open_source(tmp_path)
    assert "take" in caught.value.hint
