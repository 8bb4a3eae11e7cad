"""A GGUF file as a source of canonical tensors."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from picoedge.errors import ModelError, UnsupportedError
from picoedge.store.gguf import GgufTensor, Metadata, read_gguf
from picoedge.store.gguf_config import gguf_config
from picoedge.store.shapes import layer_shapes
from picoedge.store.sources import SourceTensor, fingerprint

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
_ROPE_FREQS = "rope_freqs.weight"
# Left over from old converters; they hold what the config says already.
_HARMLESS = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd(\.weight)?")
_PART_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")


class GgufSource:
    """See `sources.Source`."""

    kind = "gguf"

    def __init__(self, path: Path) -> None:
        file = read_gguf(path)
        self.path = path
        self.name = _PART_SUFFIX.sub("", path.stem)
        self.metadata: Metadata = file.metadata
        self.fingerprint = fingerprint(file.paths)
        self._tensors = file.tensors
        self.tensor_bytes = sum(t.nbytes for t in file.tensors.values())
        shapes = {t.name: t.shape for t in file.tensors.values()}
        self.config = gguf_config(file.metadata, shapes, self._rope_freqs(), str(path))
        self._shapes = layer_shapes(self.config)
        self._refuse_unknown()

    def tensor(self, name: str) -> SourceTensor:
        """See `sources.Source.tensor`; shapes are checked against the config."""
        rows, cols = self._shapes.of(name)
        found = self._find(self._stored_name(name))
        expected = (rows, cols) if cols > 1 or len(found.shape) > 1 else (rows,)
        if found.shape != expected:
            raise ModelError(
                f"{found.path}: tensor {found.name} has shape {found.shape}, not {expected}",
                "the file is damaged",
            )
        kind = name.rpartition(".")[2]
        paired = self.config.architecture == "llama" and kind in ("q", "k", "q_bias", "k_bias")
        head = self.config.head_dim if paired else 0
        return SourceTensor(
            found.name, found.path, found.offset, rows, cols, found.encoding, paired_head=head
        )

    def _stored_name(self, name: str) -> str:
        if name in _NAMES:
            return _NAMES[name]
        _, layer, kind = name.split(".")
        return f"blk.{layer}.{_LAYER_NAMES[kind]}"

    def _find(self, name: str) -> GgufTensor:
        if name not in self._tensors:
            raise ModelError(f"{self.path}: tensor {name} is missing", "the file is incomplete")
        return self._tensors[name]

    def _rope_freqs(self) -> tuple[float, ...]:
        if _ROPE_FREQS not in self._tensors:
            return ()
        found = self._tensors[_ROPE_FREQS]
        n = math.prod(found.shape)
        tensor = SourceTensor(found.name, found.path, found.offset, 1, n, found.encoding)
        values = tensor.vector()
        if n > 1 << 16 or not np.all(values > 0):
            raise ModelError(f"{self.path}: tensor {_ROPE_FREQS} is not a list of divisors")
        return tuple(values.tolist())

    def _refuse_unknown(self) -> None:
        """A tensor that nothing reads would be a layer left out."""
        known = {self._stored_name(name) for name in self._shapes.names()}
        for name in self._tensors:
            if name not in known and not _HARMLESS.fullmatch(name):
                raise UnsupportedError(
                    f"{self.path}: tensor {name} is not part of a supported "
                    f"{self.config.architecture} model",
                    "supported: dense models without extra biases, experts or adapters",
                )
