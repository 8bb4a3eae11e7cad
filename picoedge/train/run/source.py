"""Trained weights as a source for the packer, read where a run keeps them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from picoedge.config import ModelConfig
from picoedge.files import source_fingerprint
from picoedge.store.encodings import ENCODINGS
from picoedge.store.sources.tensors import ModelSource, SourceTensor
from picoedge.train.state.layout import EMBEDDING, FINAL_NORM, Layout, Tensor

_NOTHING = re.compile(r"(?!)")


class TrainedSource(ModelSource):
    """The weights at an offset of a file: f32, as `Layout` has them."""

    kind = "picoedge train"

    def __init__(self, path: Path, offset: int, layout: Layout, name: str) -> None:
        self.name, self.metadata = name, {}
        self._offset, self._path = offset, path
        stored = dict(self._tensors(layout))
        super().__init__(path, layout.config, stored, lambda canonical: canonical, _NOTHING)
        self.fingerprint = source_fingerprint([path])

    def _tensors(self, layout: Layout) -> Iterator[tuple[str, SourceTensor]]:
        config = layout.config
        tops = {EMBEDDING: "embed", FINAL_NORM: "final_norm"}
        for tensor in layout.tensors.values():
            layer, _, kind = tensor.name.rpartition(".")
            prefix = f"layers.{layer}."
            parts = _rows(config).get(kind)
            if parts is None:
                name = tops.get(tensor.name, f"{prefix}{kind}")
                yield name, self._part(name, tensor, 0, tensor.shape)
                continue
            first = 0
            for part, rows in parts.items():
                shape = rows, tensor.shape[1]
                yield f"{prefix}{part}", self._part(f"{prefix}{part}", tensor, first, shape)
                first += rows

    def _part(self, name: str, tensor: Tensor, row: int, shape: tuple[int, ...]) -> SourceTensor:
        values = shape[0] * (shape[1] if len(shape) > 1 else 1)
        start = tensor.offset + row * (shape[1] if len(shape) > 1 else 1)
        offset = self._offset + 4 * start
        return SourceTensor(name, shape, ENCODINGS["F32"], self._path, offset, 4 * values)


def _rows(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Matrices of a layout that hold several: their parts, and the rows of each."""
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    return {
        "qkv": {
            "q": heads * config.head_dim, "k": kv * config.head_dim, "v": kv * config.head_dim,
        },
        "gate_up": {"gate": config.intermediate_size, "up": config.intermediate_size},
    }  # fmt: skip
