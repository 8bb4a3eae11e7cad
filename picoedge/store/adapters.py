"""LoRA adapters on the disk, in PEFT's format (arXiv 2106.09685; huggingface/peft, LoraConfig).

    adapter_config.json          rank, alpha, what the matrices belong to
    adapter_model.safetensors    base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight, …

A projection y = W x becomes y = W x + s B (A x), A [r, in], B [out, r], with s = alpha / r, or
alpha / sqrt(r) with `use_rslora`. Rows are in Hugging Face's order. Fields that would change what
is computed and are not supported are refused by name, as are fields that are not known.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.errors import ModelError, UnsupportedError
from picoedge.fields import Fields
from picoedge.files import make_folder, read_object, reading, replace_file, sync, writing
from picoedge.kernels.arrays import F32
from picoedge.store.adapter_refusals import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    no_adapter,
    refuse_kinds,
    refuse_pickle,
    refused_tensor,
)
from picoedge.store.adapter_shape import MAX_LAYERS, MAX_RANK
from picoedge.store.safetensors import TensorEntry, read_header, read_matrix, safetensors_parts

ATTENTION_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj")
FFN_NAMES = ("gate_proj", "up_proj", "down_proj", "gate_up_proj")
MAX_ALPHA = 1e6

_MAX_CONFIG = 1 << 20
_HINT = "the adapter is damaged or incomplete: get it again, or train it again"
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>(?:model\.|language_model\.){0,3}layers\."
    r"(?P<layer>0|[1-9]\d{0,3})\.(?P<part>self_attn|mlp)\.(?P<name>\w{1,32}))"
    r"\.lora_(?P<side>A|B)(?:\.default)?\.weight",
    re.ASCII,
)
_PATTERN = re.compile(r"\^?[\w.]{1,200}", re.ASCII)  # a name or its end: no other expression


@dataclass(frozen=True, eq=False)
class Adapter:
    """One LoRA adapter.

    `base`: the model it was trained on, by its name; may be empty. `targets`: the names in
    `matrices`, which holds (A f32 [r, in], B f32 [out, r]) by layer and name: q_proj k_proj v_proj
    o_proj gate_proj up_proj down_proj, and of Phi qkv_proj and gate_up_proj. A matrix's own r is
    that of its shape. `alphas`: of matrices whose alpha is another one.
    """

    base: str
    rank: int
    alpha: float
    use_rslora: bool
    targets: tuple[str, ...]
    matrices: Mapping[tuple[int, str], tuple[F32, F32]]
    alphas: Mapping[tuple[int, str], float] = field(default_factory=dict)

    def scale(self, layer: int, name: str) -> float:
        """s of y = W x + s B (A x)."""
        rank = len(self.matrices[layer, name][0])
        alpha = self.alphas.get((layer, name), self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def parameters(self) -> int:
        """Values in its matrices."""
        return sum(a.size + b.size for a, b in self.matrices.values())

    @cached_property
    def identity(self) -> str:
        """The hash of all that it adds: of every A and B, and what their products are scaled by.

        It is the same whatever the folder, the format of its values and its base's name.
        """
        import hashlib  # loads OpenSSL, 4 MB that most runs never need

        hasher = hashlib.blake2b(digest_size=16)
        for (layer, name), (a, b) in sorted(self.matrices.items()):
            scale = (float(np.float32(self.scale(layer, name))) + 0.0).hex()  # -0.0 is 0.0
            hasher.update(f"{layer} {name} {a.shape} {b.shape} {scale}\0".encode())
            hasher.update(np.ascontiguousarray(a).data)
            hasher.update(np.ascontiguousarray(b).data)
        return hasher.hexdigest()


@dataclass(frozen=True)
class AdapterFacts:
    """Facts of an adapter. `path`: absolute; `nbytes`: of its two files."""

    path: Path
    rank: int
    alpha: float
    targets: tuple[str, ...]
    nbytes: int
    identity: str

    @classmethod
    def of(cls, folder: Path, adapter: Adapter) -> AdapterFacts:
        """Facts of `adapter`, which was read from `folder`. Raises ModelError."""
        with reading(folder):
            files = (folder / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
            nbytes = sum(file.stat().st_size for file in files)
        return cls(
            folder.absolute(), adapter.rank, adapter.alpha, adapter.targets, nbytes,
            adapter.identity,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Its folder's."""
        return os.path.basename(os.path.abspath(self.path))

    def to_json(self) -> dict[str, Any]:
        """Facts for reports of a model that runs with it."""
        return {
            "name": self.name,
            "path": str(self.path),
            "rank": self.rank,
            "alpha": _number(self.alpha),
            "targets": list(self.targets),
            "bytes": self.nbytes,
            "identity": self.identity,
        }


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder, all values finite f32, each pair complete and of matching shapes.

    Whether it fits a model is for `store.sources.adapter_matrices` to say. Raises ModelError where
    it is missing, damaged or incomplete, UnsupportedError where it is another kind of adapter.
    """
    fields = _read_config(folder)
    refuse_kinds(fields)
    rank = fields.integer("r", 1, MAX_RANK)
    alpha = fields.number("lora_alpha", 0.0, MAX_ALPHA)
    base = fields.get("base_model_name_or_path", str, "")[:200]
    refuse_pickle(folder)
    path = folder / ADAPTER_WEIGHTS
    modules = _modules(path)
    alphas, ranks = _patterned(fields, "alpha_pattern"), _patterned(fields, "rank_pattern")
    matrices: dict[tuple[int, str], tuple[F32, F32]] = {}
    own_alphas: dict[tuple[int, str], float] = {}
    for key, (module, sides) in modules.items():
        a, b = _pair(path, module, sides)
        due = _look_up(ranks, module, rank)
        if len(a) != due:
            raise ModelError(
                f"{path}: {module} has rank {len(a)}, {ADAPTER_CONFIG} says {due:g}", _HINT
            )
        matrices[key] = a, b
        if (own := _look_up(alphas, module, alpha)) != alpha:
            own_alphas[key] = own
    targets = tuple(n for n in (*ATTENTION_NAMES, *FFN_NAMES) if any(n == m for _, m in matrices))
    return Adapter(
        base, rank, alpha, fields.get("use_rslora", bool, False), targets, matrices, own_alphas
    )


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write `adapter` into `folder`, which is made if it is missing, as PEFT reads it.

    What else lies in the folder is left. Until both files are complete there is the old adapter or
    none, never one of two halves. A Phi model's adapter must have Phi's own fused names first
    (`store.sources.adapter_matrices.as_stored`). Raises StorageError.
    """
    tensors = {
        f"base_model.model.{_module(layer, name)}.lora_{side}.weight": values
        for (layer, name), pair in sorted(adapter.matrices.items())
        for side, values in zip("AB", pair, strict=True)
    }
    parts = safetensors_parts(tensors)
    config = json.dumps(_config(adapter), indent=2).encode() + b"\n"
    needed = sum(len(part) for part in parts) + len(config)
    beside = folder / f".{ADAPTER_WEIGHTS}.new"
    with writing(folder, needed):
        make_folder(folder)
        try:
            with beside.open("wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileNotFoundError):
                (folder / ADAPTER_CONFIG).unlink()  # it says nothing of the new matrices
            os.replace(beside, folder / ADAPTER_WEIGHTS)
            sync(folder)
            replace_file(folder / ADAPTER_CONFIG, config)
        finally:
            with suppress(OSError):
                beside.unlink()


def _read_config(folder: Path) -> Fields:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise no_adapter(folder)
    return read_object(folder / ADAPTER_CONFIG, _MAX_CONFIG, _HINT)


_Modules = dict[tuple[int, str], tuple[str, dict[str, TensorEntry]]]


def _modules(path: Path) -> _Modules:
    """The entries of A and B by layer and name, with the name of the module in the base."""
    entries = read_header(path)
    if sum(entry.nbytes for entry in entries) > path.stat().st_size:
        raise ModelError(f"{path}: tensors share bytes", _HINT)
    found: _Modules = {}
    for entry in entries:
        match = _KEY.fullmatch(entry.name)
        names = ATTENTION_NAMES if match and match["part"] == "self_attn" else FFN_NAMES
        if match is None or match["name"] not in names:
            raise refused_tensor(path, entry.name)
        if int(match["layer"]) >= MAX_LAYERS:
            raise ModelError(f"{path}: tensor {entry.name} is of layer {match['layer']}", _HINT)
        key = int(match["layer"]), match["name"]
        module, sides = found.setdefault(key, (match["module"], {}))
        if module != match["module"] or match["side"] in sides:
            raise ModelError(f"{path}: {entry.name} is there twice", _HINT)
        sides[match["side"]] = entry
    if not found:
        raise ModelError(f"{path} holds no matrices", _HINT)
    return found


def _pair(path: Path, module: str, sides: Mapping[str, TensorEntry]) -> tuple[F32, F32]:
    for side in "AB":
        if side not in sides:
            raise ModelError(f"{path}: lora_{side} of {module} is missing", _HINT)
    shapes = sides["A"].shape, sides["B"].shape
    if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][1]:
        raise ModelError(
            f"{path}: {module} has A {shapes[0]} and B {shapes[1]}; [r, in] and [out, r] are due",
            _HINT,
        )
    return read_matrix(sides["A"]), read_matrix(sides["B"])


def _patterned(fields: Fields, name: str) -> dict[str, float]:
    """Values of `rank_pattern` or `alpha_pattern` by the end of a module's name."""
    if not fields.values.get(name):
        return {}
    inside = fields.object(name)
    for key in inside.values:
        if not _PATTERN.fullmatch(key):
            raise UnsupportedError(
                f"{fields.where}: {name} holds the expression {key[:64]!r}",
                "whole names are supported: layers.3.self_attn.q_proj, or q_proj",
            )
    return {key: inside.number(key, 0.0, MAX_ALPHA) for key in inside.values}


def _look_up(values: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first name that is `module` or, unless it starts with ^, its end."""
    for key, value in values.items():
        if module == key.removeprefix("^") or module.endswith(f".{key}"):
            return value
    return default


def _module(layer: int, name: str) -> str:
    part = "self_attn" if name in ATTENTION_NAMES else "mlp"
    return f"model.layers.{layer}.{part}.{name}"


def _config(adapter: Adapter) -> dict[str, Any]:
    """The values of `adapter_config.json`."""
    matrices = adapter.matrices
    layers = sorted({layer for layer, _ in matrices})
    names = sorted({name for _, name in matrices})
    whole = layers == list(range(len(layers))) and len(matrices) == len(layers) * len(names)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": _number(adapter.alpha),
        "lora_dropout": 0.0,
        "use_rslora": adapter.use_rslora,
        "target_modules": names if whole else [_module(*key) for key in sorted(matrices)],
        "rank_pattern": {
            _module(*key): len(a)
            for key, (a, _) in sorted(matrices.items())
            if len(a) != adapter.rank
        },
        "alpha_pattern": {
            _module(*key): _number(alpha)
            for key, alpha in sorted(adapter.alphas.items())
            if alpha != adapter.alpha
        },
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": layers if whole else None,
    }


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value
