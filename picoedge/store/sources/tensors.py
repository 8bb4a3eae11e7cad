"""Source tensors: as stored in files, and under canonical names for the packer.

Canonical names: `embed`, `head`, `final_norm`, and for layer i `layers.i.` with `q k v o gate up
down`, `q_bias k_bias v_bias`, and the norms of `ModelConfig.norm_lengths`. Rows of q and k are
always in Hugging Face's half-split rope order, and norms are the effective weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.config import ModelConfig
from picoedge.errors import ModelError, UnsupportedError
from picoedge.files import read_at
from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import Quants
from picoedge.store.encodings import Encoding


@dataclass(frozen=True)
class Shapes:
    """Shapes (rows, cols) of all tensors; a vector is (n, 1)."""

    globals: dict[str, tuple[int, int]]
    layer: dict[str, tuple[int, int]]
    n_layers: int

    def shape(self, name: str) -> tuple[int, int]:
        """Shape of a canonical tensor."""
        return self.globals[name] if name in self.globals else self.layer[name.split(".")[2]]

    def names(self) -> Iterator[str]:
        """Every canonical tensor of the model."""
        yield from self.globals
        for i in range(self.n_layers):
            for kind in self.layer:
                yield f"layers.{i}.{kind}"

    @classmethod
    def of(cls, config: ModelConfig) -> Shapes:
        """Tensors of a model with this config."""
        hidden, inner = config.hidden_size, config.intermediate_size
        q_rows = config.num_attention_heads * config.head_dim
        kv_rows = config.num_key_value_heads * config.head_dim
        layer = {
            "q": (q_rows, hidden), "k": (kv_rows, hidden), "v": (kv_rows, hidden),
            "o": (hidden, q_rows), "gate": (inner, hidden), "up": (inner, hidden),
            "down": (hidden, inner),
        }  # fmt: skip
        if config.qkv_bias:
            layer |= {"q_bias": (q_rows, 1), "k_bias": (kv_rows, 1), "v_bias": (kv_rows, 1)}
        layer |= {norm: (length, 1) for norm, length in config.norm_lengths.items()}
        whole = {"embed": (config.vocab_size, hidden), "final_norm": (hidden, 1)}
        if not config.tie_word_embeddings:
            whole["head"] = (config.vocab_size, hidden)
        return cls(whole, layer, config.num_hidden_layers)


@dataclass(frozen=True)
class StoredTensor:
    """One row of a file's tensor table; `shape` is rows first, `offset` from the file's start."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class SourceTensor:
    """One tensor of a file, [rows, cols], row-major, read by spans of rows.

    `paired_head`: head size where rope pairs are stored side by side (GGUF's llama); rows are
    returned in half-split order. `added`: constant added to every value (Gemma's norms: 1).
    """

    name: str
    path: Path
    offset: int
    rows: int
    cols: int
    encoding: Encoding
    paired_head: int = 0
    added: float = 0.0

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.rows * self.encoding.row_bytes(self.cols)

    def raw(self, first: int, last: int) -> U8:
        """Bytes of rows [first, last), u8 [n, row bytes]."""
        if not self.paired_head:
            return self._stored(first, last)
        size = self.paired_head
        start, end = first // size * size, -(-last // size) * size
        row_bytes = self.encoding.row_bytes(self.cols)
        pairs = self._stored(start, end).reshape(-1, size // 2, 2, row_bytes)
        halves: U8 = pairs.transpose(0, 2, 1, 3).reshape(end - start, -1)
        return halves[first - start : last - start]

    def _stored(self, first: int, last: int) -> U8:
        row_bytes = self.encoding.row_bytes(self.cols)
        start = self.offset + first * row_bytes
        data = read_at(self.path, start, (last - first) * row_bytes)
        return np.frombuffer(data, np.uint8).reshape(-1, row_bytes)

    def quants(self, first: int, last: int) -> Quants:
        """Rows [first, last) in the encoding's exact format. Raises ModelError on a bad scale."""
        parts = self.encoding.quants(self.raw(first, last))
        for values in (parts.scales, parts.mins, parts.superscales, parts.supermins):
            if values is not None and values.dtype.kind == "f":
                self._refuse_nonfinite(values)
        return parts

    def floats(self, first: int, last: int) -> F32:
        """Rows [first, last) as f32. Raises ModelError on NaN or infinity."""
        values = self.encoding.floats(self.raw(first, last))
        self._refuse_nonfinite(values)
        return values + np.float32(self.added) if self.added else values

    def vector(self) -> F32:
        """All values of a one-dimensional tensor, f32 [rows]."""
        return self.floats(0, self.rows).reshape(-1)

    def _refuse_nonfinite(self, values: np.ndarray[Any, Any]) -> None:
        if not np.isfinite(values).all():
            raise ModelError(
                f"tensor {self.name} of {self.path} holds NaN or infinity",
                "the file is damaged: get it again",
            )


class TensorTable:
    """Tensors of a source by canonical name; `stored_name` maps it to the name in the files."""

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        stored: Mapping[str, StoredTensor],
        stored_name: Callable[[str], str],
    ) -> None:
        self._path, self._stored, self._stored_name = path, stored, stored_name
        if config.num_hidden_layers > len(stored):
            raise ModelError(
                f"{path}: {config.num_hidden_layers} layers in {len(stored)} tensors",
                "the file is damaged",
            )
        self._shapes = Shapes.of(config)
        self.nbytes = sum(tensor.nbytes for tensor in stored.values())

    def get(self, name: str, paired_head: int = 0, added: float = 0.0) -> SourceTensor:
        """The tensor of a canonical name, its shape checked against the config.

        Raises ModelError naming the stored tensor where it is missing or of another shape.
        """
        rows, cols = self._shapes.shape(name)
        stored_name = self._stored_name(name)
        stored = self._stored.get(stored_name)
        if stored is None:
            raise ModelError(
                f"{self._path}: tensor {stored_name} is missing", "the model is incomplete"
            )
        expected = (rows, cols) if cols > 1 or len(stored.shape) > 1 else (rows,)
        if stored.shape != expected:
            raise ModelError(
                f"{stored.path}: tensor {stored.name} has shape {stored.shape}, not {expected}",
                "the file is damaged",
            )
        return SourceTensor(
            stored.name, stored.path, stored.offset, rows, cols, stored.encoding, paired_head, added
        )

    def refuse_unknown(self, harmless: re.Pattern[str]) -> None:
        """Raise UnsupportedError on a tensor that the model would ignore."""
        known = {self._stored_name(name) for name in self._shapes.names()}
        for name in self._stored:
            if name not in known and not harmless.fullmatch(name):
                raise UnsupportedError(
                    f"{self._path}: tensor {name} is not part of the models that are supported",
                    "supported: dense models without experts, adapters or extra biases",
                )
