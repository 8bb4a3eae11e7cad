"""The weights and config of a Hugging Face folder, written from a pack."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from picoedge.config import ModelConfig
from picoedge.kernels.arrays import F32
from picoedge.store.export.floats import FLOAT_BYTES, FloatType, float_bytes
from picoedge.store.export.huggingface_config import has_output_bias, huggingface_values
from picoedge.store.pack.pack_tensors import PackTensors
from picoedge.store.sources.huggingface import (
    HF_LAYER_NAMES,
    HF_PLAIN_NORMS,
    HF_SANDWICH_NORMS,
)

WEIGHTS_FILE = "model.safetensors"
_OUTPUT_BIAS = "o_bias"
_ALIGNED = 8  # the end of the header: safetensors' own rule


class HuggingFaceExport:
    """Contents of a folder to write. Raises UnsupportedError for what the format cannot say.

    `nbytes`: of the weights.
    """

    def __init__(self, tensors: PackTensors, dtype: FloatType) -> None:
        self._tensors, self._dtype = tensors, dtype
        self._config: ModelConfig = tensors.pack.config
        self._values = huggingface_values(self._config, dtype)
        self._shapes = dict(tensors.shapes)
        if has_output_bias(self._config):
            layers, hidden = self._config.num_hidden_layers, self._config.hidden_size
            self._shapes |= {f"layers.{i}.{_OUTPUT_BIAS}": (hidden, 1) for i in range(layers)}
        self.nbytes = sum(self._nbytes(name) for name in self._shapes)

    def write(self, folder: Path, wrote: Callable[[int], None]) -> None:
        """Write config and weights; `wrote` is told of bytes. Raises OSError, ModelError."""
        text = json.dumps(self._values, indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="ascii")
        with (folder / WEIGHTS_FILE).open("xb") as file:
            file.write(self._header())
            for name in self._shapes:
                for data in float_bytes(self._blocks(name), self._type(name), name):
                    file.write(data)
                    wrote(len(data))

    def _header(self) -> bytes:
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, (rows, cols) in self._shapes.items():
            end = at + self._nbytes(name)
            shape = [rows] if cols == 1 else [rows, cols]
            dtype = self._type(name).upper()
            entries[self._name(name)] = {
                "dtype": dtype, "shape": shape, "data_offsets": [at, end]
            }  # fmt: skip
            at = end
        text = json.dumps(entries, separators=(",", ":")).encode("ascii")
        text += b" " * (-len(text) % _ALIGNED)
        return len(text).to_bytes(8, "little") + text

    def _type(self, name: str) -> FloatType:
        """Everything in one type: `transformers` loads a model in one."""
        return self._dtype

    def _nbytes(self, name: str) -> int:
        return math.prod(self._shapes[name]) * FLOAT_BYTES[self._type(name)]

    def _blocks(self, name: str) -> Iterator[F32]:
        if name.endswith(_OUTPUT_BIAS):
            yield np.zeros(self._shapes[name], np.float32)
            return
        # Gemma's norms multiply by 1 + weight.
        less = self._config.architecture == "gemma3" and name.endswith("_norm")
        for block in self._tensors.blocks(name):
            yield block - np.float32(1) if less else block

    def _name(self, name: str) -> str:
        """The name in the file."""
        whole = {
            "embed": "model.embed_tokens.weight",
            "final_norm": "model.norm.weight",
            "head": "lm_head.weight",
        }
        if name in whole:
            return whole[name]
        _, layer, kind = name.split(".")
        norms = HF_SANDWICH_NORMS if self._config.sandwich_norm else HF_PLAIN_NORMS
        own = {_OUTPUT_BIAS: "self_attn.o_proj.bias"}
        return f"model.layers.{layer}.{(HF_LAYER_NAMES | norms | own)[kind]}"
