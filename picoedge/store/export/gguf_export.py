"""A pack as a GGUF file: the key-values of its config, and its tensors under GGUF's names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from picoedge.config import ModelConfig
from picoedge.errors import UnsupportedError
from picoedge.kernels.arrays import F32
from picoedge.store.export.floats import FloatType, float_bytes
from picoedge.store.export.gguf_file import GgufTensor, gguf_header, padding
from picoedge.store.export.huggingface_config import check_exportable
from picoedge.store.pack.pack_tensors import PackTensors
from picoedge.store.sources.gguf_source import (
    GGUF_LAYER_NAMES,
    GGUF_NAMES,
    GGUF_PAIRED,
    ROPE_FREQS,
)

# Mistral's files have Llama's architecture, which has no window.
_ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3",
}  # fmt: skip
_FILE_TYPES: dict[FloatType, int] = {"f32": 0, "f16": 1}


class GgufExport:
    """Contents of a file to write. Raises UnsupportedError for what the format cannot say.

    `divisors`: of rope's frequencies, f32 [head_dim / 2]; None: rope is not stretched, or by one
    factor. `nbytes`: of the tensors.
    """

    def __init__(self, tensors: PackTensors, dtype: FloatType, divisors: F32 | None) -> None:
        self._source, self._dtype = tensors, dtype
        self._config, self._divisors = tensors.pack.config, divisors
        _check(self._config)
        self._architecture = _ARCHITECTURES[self._config.architecture]
        self._tensors = {name: self._tensor(name, shape) for name, shape in tensors.shapes.items()}
        if divisors is not None:
            self._tensors[ROPE_FREQS] = GgufTensor(ROPE_FREQS, divisors.shape, "f32")
        self.nbytes = sum(each.nbytes + 32 for each in self._tensors.values())

    def write(self, file: BinaryIO, text: Mapping[str, Any], wrote: Callable[[int], None]) -> None:
        """Write the file; `text`: the tokenizer's key-values. Raises OSError, ModelError."""
        values = {**self._values(), **text}
        file.write(gguf_header(values, list(self._tensors.values())))
        for name, tensor in self._tensors.items():
            for data in float_bytes(self._blocks(name), tensor.dtype, tensor.name):
                file.write(data)
                wrote(len(data))
            file.write(padding(tensor.nbytes))

    def _values(self) -> dict[str, Any]:
        config, pack = self._config, self._source.pack
        own: dict[str, Any] = {
            "vocab_size": config.vocab_size,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "block_count": config.num_hidden_layers,
            "feed_forward_length": config.intermediate_size,
            "rope.dimension_count": config.head_dim,
            "rope.freq_base": float(config.rope_theta),
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
            "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        }
        if config.rope_scaling.kind == "linear":
            own |= {
                "rope.scaling.type": "linear",
                "rope.scaling.factor": float(config.rope_scaling.factor),
            }
        if config.architecture == "gemma3":
            layers = range(config.num_hidden_layers)
            own |= {
                "attention.sliding_window": config.sliding_window,
                "attention.sliding_window_pattern": [i in config.windowed_layers for i in layers],
                "rope.freq_base_swa": float(config.rope_local_theta),
            }
        return {
            "general.architecture": self._architecture,
            "general.type": "model",
            "general.name": pack.name,
            "general.file_type": _FILE_TYPES[self._dtype],
            "general.quantization_version": 2,
            **{f"general.sampling.{key}": value for key, value in pack.sampling.items()},
            **{f"{self._architecture}.{key}": value for key, value in own.items()},
        }

    def _tensor(self, name: str, shape: tuple[int, int]) -> GgufTensor:
        rows, cols = shape
        if name in GGUF_NAMES:
            stored = GGUF_NAMES[name]
        else:
            _, layer, kind = name.split(".")
            stored = f"blk.{layer}.{GGUF_LAYER_NAMES[kind]}"
        if cols == 1:  # norms and biases: llama.cpp wants f32
            return GgufTensor(stored, (rows,), "f32")
        return GgufTensor(stored, shape, self._dtype)

    def _blocks(self, name: str) -> Iterator[F32]:
        if name == ROPE_FREQS:
            assert self._divisors is not None
            yield self._divisors
            return
        paired = self._architecture == "llama" and name.rpartition(".")[2] in GGUF_PAIRED
        if not paired:
            yield from self._source.blocks(name)
            return
        # Rope's pairs side by side, of whole heads.
        rows = np.concatenate(list(self._source.blocks(name)))
        heads = rows.reshape(-1, 2, self._config.head_dim // 2, rows.shape[1])
        yield np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def _check(config: ModelConfig) -> None:
    check_exportable(config, "GGUF", _ARCHITECTURES)
    scaling, is_gemma = config.rope_scaling, config.architecture == "gemma3"
    reasons = {
        "a window of attention in a model of Llama's kind": bool(config.windowed_layers)
        and not is_gemma,
        "a scale of scores of its own": is_gemma and bool(config.attention_scale)
        and abs(config.attention_scale * config.head_dim**0.5 - 1) > 1e-6,
        "rope with a factor of attention": scaling.attention_factor != 1.0,
    }  # fmt: skip
    for what, is_so in reasons.items():
        if is_so:
            raise UnsupportedError(
                f"{what} cannot be exported to GGUF", "export it to Hugging Face: --to hf"
            )
