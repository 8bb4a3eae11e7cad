"""GGUF source: the tensors of a GGUF file under canonical names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.errors import ModelError
from picoedge.store.files import naming, source_fingerprint
from picoedge.store.sources.gguf import read_gguf
from picoedge.store.sources.gguf_config import gguf_config
from picoedge.store.sources.tensors import SourceTensor, StoredTensor, TensorTable

_LAYER_NAMES = {
    "q": "attn_q.weight", "k": "attn_k.weight", "v": "attn_v.weight", "o": "attn_output.weight",
    "gate": "ffn_gate.weight", "up": "ffn_up.weight", "down": "ffn_down.weight",
    "q_bias": "attn_q.bias", "k_bias": "attn_k.bias", "v_bias": "attn_v.bias",
    "input_norm": "attn_norm.weight", "pre_ffn_norm": "ffn_norm.weight",
    "post_attention_norm": "post_attention_norm.weight",
    "post_ffn_norm": "post_ffw_norm.weight",
    "q_norm": "attn_q_norm.weight", "k_norm": "attn_k_norm.weight",
}  # fmt: skip
_NAMES = {"embed": "token_embd.weight", "head": "output.weight", "final_norm": "output_norm.weight"}
_PAIRED = ("q", "k", "q_bias", "k_bias")
_ROPE_FREQS = "rope_freqs.weight"
_MAX_FREQS = 1 << 16
# Written by old converters; redundant with the config.
_HARMLESS = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd(\.weight)?")
_PART_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")


class GgufSource:
    """A GGUF file as a `ModelSource`."""

    kind = "gguf"

    def __init__(self, path: Path) -> None:
        file = read_gguf(path)
        self.path = path
        self.name = _PART_SUFFIX.sub("", path.stem)
        self.metadata: Mapping[str, Any] = file.metadata
        self.fingerprint = source_fingerprint(file.paths)
        shapes = {t.name: t.shape for t in file.tensors.values()}
        freqs = _rope_freqs(file.tensors.get(_ROPE_FREQS))
        with naming(path):
            self.config = gguf_config(file.metadata, shapes, freqs, str(path))
        if freqs and len(freqs) != self.config.head_dim // 2:
            raise ModelError(
                f"{path}: {_ROPE_FREQS} has {len(freqs)} values", "the file is damaged"
            )
        self._table = TensorTable(path, self.config, file.tensors, _stored_name)
        self._table.refuse_unknown(_HARMLESS)
        self.tensor_bytes = self._table.nbytes

    def tensor(self, name: str) -> SourceTensor:
        """See `ModelSource.tensor`."""
        paired = self.config.architecture == "llama" and name.rpartition(".")[2] in _PAIRED
        return self._table.get(name, paired_head=self.config.head_dim if paired else 0)


def _stored_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, layer, kind = name.split(".")
    return f"blk.{layer}.{_LAYER_NAMES[kind]}"


def _rope_freqs(stored: StoredTensor | None) -> tuple[float, ...]:
    """Frequency divisors of the file; () without."""
    if stored is None:
        return ()
    n = math.prod(stored.shape)
    tensor = SourceTensor(stored.name, stored.path, stored.offset, n, 1, stored.encoding)
    if n > _MAX_FREQS or not np.all(tensor.vector() > 0):
        raise ModelError(f"{stored.path}: tensor {stored.name} is not a list of divisors")
    return tuple(tensor.vector().tolist())
