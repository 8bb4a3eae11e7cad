"""Files that are no model of ours, told for what they are, with what to take instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from picoedge.errors import ModelError, UnsupportedError
from picoedge.fields import Fields
from picoedge.files import naming, read_object
from picoedge.store.adapter_refusals import ADAPTER_CONFIG, is_adapter
from picoedge.store.safetensors import LFS_POINTER

_MAX_JSON = 1 << 20
_REPO = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_TAKE_GGUF = "take a GGUF of it (Q4_K_M, say), or its original float weights"
_TAKE_MODEL = "take the GGUF of the language model itself"

# First bytes of files that people take for models.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"tjgg", "a GGJT file of 2023, before GGUF", "take a GGUF of the model"),
    (b"fmgg", "a GGMF file of 2023, before GGUF", "take a GGUF of the model"),
    (b"lmgg", "a GGML file of 2023, before GGUF", "take a GGUF of the model"),
    (b"algg", "a LoRA adapter in GGLA form", "take a model that it was merged into"),
    LFS_POINTER,
    (b"PK\x03\x04", "a zip archive, as PyTorch's pickles are: they can run code and are not read",
     "take the model as safetensors, or its GGUF"),
    (b"\x80\x02", "a Python pickle, which can run code and is not read",
     "take the model as safetensors, or its GGUF"),
    (b"<!", "a web page, not the file itself", "download the file anew"),
    (b"<html", "a web page, not the file itself", "download the file anew"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"\x7fELF", "a program", "a llamafile holds a GGUF: take that (unzip lists it)"),
    (b"MZ", "a program", "a llamafile holds a GGUF: take that (unzip lists it)"),
    (b"\x89HDF\r\n", "an HDF5 file of TensorFlow", "take the model as safetensors, or its GGUF"),
)  # fmt: skip
_SUFFIXES = {
    ".onnx": "an ONNX file", ".tflite": "a TensorFlow Lite file", ".mlmodel": "a Core ML file",
    ".engine": "a TensorRT engine", ".pte": "an ExecuTorch program", ".h5": "a TensorFlow file",
    ".msgpack": "a Flax file", ".bin": "no GGUF; PyTorch's pickles are not read",
    ".pt": "no GGUF; PyTorch's pickles are not read",
    ".pth": "no GGUF; PyTorch's pickles are not read",
    ".ckpt": "no GGUF; PyTorch's pickles are not read",
    ".dat": "no GGUF; an importance matrix, perhaps",
}  # fmt: skip
_CUT = re.compile(r"\.gguf(\.|-split-)?(part\d+of\d+|part[-_]?\w{1,3}|[a-z]{1,2})$", re.IGNORECASE)


def not_a_gguf(path: Path, head: bytes) -> ModelError:
    """The error for a file that does not begin as a GGUF does; `head`: its first 64 bytes."""
    for magic, what, remedy in _MAGIC:
        if head.lower().startswith(magic.lower()):
            return UnsupportedError(f"{path} is {what}", remedy)
    if _CUT.search(path.name):
        return ModelError(
            f"{path} is a later piece of a GGUF that was cut",
            "join the pieces into one file, in order: cat NAME.gguf.part* > NAME.gguf",
        )
    if path.suffix == ".safetensors":
        where = path.parent if (path.parent / "config.json").is_file() else "the folder it is in"
        hint = f"give {where}: config.json and the tokenizer belong to it"
        return ModelError(f"{path} is not a GGUF file, but the weights of a folder", hint)
    if path.suffix.lower() in _SUFFIXES:
        return UnsupportedError(f"{path} is {_SUFFIXES[path.suffix.lower()]}", _TAKE_MODEL)
    return ModelError(f"{path} is not a GGUF file", "a model is a .gguf file or a folder")


_GGUF_TYPES = {
    "adapter": ("a LoRA adapter", "take a GGUF of a model that it was merged into"),
    "mmproj": ("the image or audio half of a model (mmproj)", _TAKE_MODEL),
    "imatrix": ("an importance matrix, used to quantize", _TAKE_MODEL),
    "vocab": ("a vocabulary without weights", _TAKE_MODEL),
}
_GGUF_KINDS = {
    "the image or audio half of a model (mmproj)": ("clip",),
    "an embedding model": (
        "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2",
        "jina-bert-v3", "eurobert", "gemma-embedding", "t5encoder", "llama-embed",
    ),
    "a speech model": ("whisper", "wavtokenizer-dec", "parakeet", "kokoro", "outetts"),
    "an image or video model": (
        "flux", "sd1", "sdxl", "sd3", "aura", "hidream", "cosmos", "ltxv", "hyvid", "wan",
        "lumina2", "qwen_image", "z_image", "pixart", "stable-diffusion",
    ),
    "an importance matrix, used to quantize": ("imatrix",),
}  # fmt: skip
_POOLED = (1, 2, 3, 4)  # how an embedding model makes one vector of a text


def refuse_other_kinds(metadata: Mapping[str, Any], path: Path) -> None:
    """Raise UnsupportedError where a GGUF says that it is no language model."""
    kind, architecture = metadata.get("general.type"), metadata.get("general.architecture")
    if isinstance(kind, str) and kind in _GGUF_TYPES:
        what, remedy = _GGUF_TYPES[kind]
        raise UnsupportedError(f"{path} is {what}", remedy)
    for what, names in _GGUF_KINDS.items():
        if architecture in names:
            raise UnsupportedError(
                f"{path} is {what} ({architecture}), not a language model", _TAKE_MODEL
            )
    if isinstance(architecture, str) and metadata.get(f"{architecture}.pooling_type") in _POOLED:
        raise UnsupportedError(f"{path} is an embedding model: it writes no text", _TAKE_MODEL)


_METHODS = {
    "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "fbgemm_fp8": "FP8", "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors", "exl2": "EXL2", "exl3": "EXL3", "mxfp4": "MXFP4",
    "hqq": "HQQ", "aqlm": "AQLM", "quanto": "Quanto", "torchao": "torchao", "eetq": "EETQ",
    "vptq": "VPTQ", "higgs": "HIGGS", "spqr": "SpQR", "bitnet": "BitNet", "modelopt": "ModelOpt",
    "auto-round": "AutoRound", "intel/auto-round": "AutoRound", "quark": "Quark", "fp_quant": "FP",
}  # fmt: skip


def refuse_quantized(config: Fields) -> None:
    """Raise UnsupportedError where a `config.json` describes weights that are quantized."""
    for values in (config.values, config.values.get("text_config")):
        if not isinstance(values, dict):
            continue
        told = values.get("quantization_config") or values.get("compression_config")
        if isinstance(told, dict) and told:
            method = str(told.get("quant_method", "")).lower()
            name = _METHODS.get(method, method[:32] if _REPO.fullmatch(method) else "quantized")
            raise _quantized(config.where, name)
        if isinstance(values.get("quantization"), dict):
            raise _quantized(config.where, "MLX")


def _quantized(where: object, name: str) -> UnsupportedError:
    return UnsupportedError(
        f"{where}: the weights are in {name} form (its quantization), which is not supported",
        f"supported: f32, f16 and bf16 weights, and GGUF: {_TAKE_GGUF}",
    )


_FOLDERS = (
    ("model_index.json", "an image model's pipeline (diffusers)"),
    ("modules.json", "an embedding model (sentence-transformers)"),
    ("config_sentence_transformers.json", "an embedding model (sentence-transformers)"),
    ("quantize_config.json", "a model in GPTQ form"),
    ("quant_config.json", "a model in AWQ form"),
    ("mlc-chat-config.json", "a model in MLC form"),
    ("genai_config.json", "a model in ONNX form"),
    ("params.json", "a model in its maker's own form (consolidated)"),
)


def refuse_folder(path: Path) -> None:
    """Raise where a folder without config.json, or beside it, is plainly something else."""
    if is_adapter(path):
        raise _adapter(path)
    if (path / "config.json").is_file():
        return
    for name, what in _FOLDERS:
        if (path / name).is_file():
            raise UnsupportedError(f"{path} is {what}: it has no config.json", _TAKE_GGUF)
    if any(path.rglob("*.onnx")):
        raise UnsupportedError(f"{path} holds an ONNX model", _TAKE_GGUF)


def _adapter(path: Path) -> UnsupportedError:
    with naming(path):
        base = read_object(path / ADAPTER_CONFIG, _MAX_JSON, "").values
    name = base.get("base_model_name_or_path")
    onto = f" onto {name}" if isinstance(name, str) and _REPO.fullmatch(name) else ""
    return UnsupportedError(
        f"{path} is a LoRA adapter{onto}, not a whole model",
        "run it beside its model (--adapter), or make a pack of both with picoedge merge",
    )


def no_weights(path: Path) -> ModelError:
    """The error for a folder with a config.json and no safetensors file."""
    for name, what in _FOLDERS[3:]:
        if (path / name).is_file():
            return UnsupportedError(f"{path} is {what}", _TAKE_GGUF)
    kinds = {".onnx": "ONNX", ".h5": "TensorFlow", ".msgpack": "Flax", ".mlmodel": "Core ML"}
    for suffix, name in kinds.items():
        if any(path.rglob(f"*{suffix}")):
            return UnsupportedError(f"{path} holds the model as {name} only", _TAKE_GGUF)
    if any(path.glob("*.bin")) or any(path.glob("*.pt*")) or any(path.glob("*.ckpt")):
        return UnsupportedError(
            f"{path} holds PyTorch pickles only, which can run code and are not read",
            "get the model as safetensors, or load and save_pretrained() it once with transformers",
        )
    ggufs = sorted(path.glob("*.gguf"))
    hint = f"did you mean {ggufs[0]}?" if ggufs else ""
    return ModelError(
        f"{path} has no .safetensors files",
        hint or "the folder is incomplete or damaged: get it again",
    )
