"""Source tensors, by their names in files and by canonical names for the packer.

Canonical names: `embed`, `head`, `final_norm`, and for layer i `layers.i.` with `q k v o gate up
down`, `q_bias k_bias v_bias`, and the norms of `ModelConfig.norm_lengths`. Rows of q and k are
always in Hugging Face's half-split rope order, and norms are the effective weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.config import UNTURNED, ModelConfig
from picoedge.errors import ModelError, UnsupportedError
from picoedge.files import read_at
from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import Quants
from picoedge.store.encodings import Encoding
from picoedge.store.sources.rope import turned_order

_MAX_BIAS = 1 << 20  # values: more than any layer is wide


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Canonical tensors of a model with this config: (rows, cols); a vector is (n, 1)."""
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
    shapes = {"embed": (config.vocab_size, hidden), "final_norm": (hidden, 1)}
    if not config.tie_word_embeddings:
        shapes["head"] = (config.vocab_size, hidden)
    for i in range(config.num_hidden_layers):
        shapes |= {f"layers.{i}.{kind}": shape for kind, shape in layer.items()}
    return shapes


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a file, row-major, read by spans of rows.

    `shape`: rows first. `offset`: from the file's start. `paired_head`: head size where rope pairs
    are stored side by side (GGUF's llama); rows are returned in half-split order. `head_order`: the
    stored row of each row of a head, where only a part of it is rotated (Phi). `added`: constant
    added to every value (Gemma's norms: 1).
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    path: Path
    offset: int
    nbytes: int
    paired_head: int = 0
    head_order: tuple[int, ...] = ()
    added: float = 0.0

    @property
    def rows(self) -> int:
        """Rows, or values of a vector."""
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Values in a row, 1 in a vector."""
        return self.shape[1] if len(self.shape) > 1 else 1

    def raw(self, first: int, last: int) -> U8:
        """Bytes of rows [first, last), u8 [n, row bytes]."""
        if self.head_order:
            return self._ordered(first, last)
        if not self.paired_head:
            return self._stored(first, last)
        size = self.paired_head
        start, end = first // size * size, -(-last // size) * size
        row_bytes = self.encoding.row_bytes(self.cols)
        pairs = self._stored(start, end).reshape(-1, size // 2, 2, row_bytes)
        halves: U8 = pairs.transpose(0, 2, 1, 3).reshape(end - start, -1)
        return halves[first - start : last - start]

    def _ordered(self, first: int, last: int) -> U8:
        size = len(self.head_order)
        start, end = first // size * size, -(-last // size) * size
        heads = self._stored(start, end).reshape((end - start) // size, size, -1)
        ordered: U8 = heads[:, list(self.head_order)].reshape(end - start, -1)
        return ordered[first - start : last - start]

    def rows_from(self, first: int, rows: int) -> SourceTensor:
        """A part of a matrix that holds several, as a tensor of its own."""
        row_bytes = self.encoding.row_bytes(self.cols)
        return replace(
            self, shape=(rows, self.cols), offset=self.offset + first * row_bytes,
            nbytes=rows * row_bytes,
        )  # fmt: skip

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


def _refuse_unless_zero(path: Path, tensor: SourceTensor) -> None:
    """Pass over a bias of zeros; raise UnsupportedError on any other tensor."""
    if not tensor.name.endswith(".bias") or len(tensor.shape) != 1:
        raise UnsupportedError(
            f"{path}: tensor {tensor.name} is not part of the models that are supported",
            "supported: dense models without experts or adapters",
        )
    if tensor.rows > _MAX_BIAS or tensor.vector().any():
        raise UnsupportedError(
            f"{path}: tensor {tensor.name} is a bias that is not zero, and is not supported",
            "supported: biases of q, k and v; take a model of `picoedge list`",
        )


class ModelSource:
    """A model that can be packed: its config, and its tensors by canonical name."""

    kind: str  # "gguf" or "huggingface"
    name: str
    fingerprint: str  # hash of file sizes, times and first bytes
    metadata: Mapping[str, Any]  # a GGUF's key-values, large ones read on access
    sampling: Mapping[str, float] = {}  # how the model says that it is to be sampled
    passed_over: int = 0  # tensors that see or hear: the text's model is packed alone

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        stored: Mapping[str, SourceTensor],
        stored_name: Callable[[str], str],
        harmless: re.Pattern[str],
    ) -> None:
        """`stored_name` maps canonical names to names in the files, the keys of `stored`.

        Raises UnsupportedError on a tensor that the model would ignore and that is not `harmless`;
        a bias of zeros is.
        """
        self.path, self.config = path, config
        self._stored, self._stored_name = stored, stored_name
        if config.num_hidden_layers > len(stored):
            raise ModelError(
                f"{path}: {config.num_hidden_layers} layers in {len(stored)} tensors",
                "the file is damaged",
            )
        self._shapes = tensor_shapes(config)
        self.tensor_bytes = sum(tensor.nbytes for tensor in stored.values())
        known = {stored_name(name) for name in self._shapes}
        for name, tensor in stored.items():
            if name not in known and not harmless.fullmatch(name):
                _refuse_unless_zero(path, tensor)

    def tensor(self, name: str) -> SourceTensor:
        """The tensor of a canonical name, its shape checked against the config.

        Raises ModelError naming the stored tensor where it is missing or of another shape.
        """
        rows, cols = self._shapes[name]
        stored_name = self._stored_name(name)
        stored = self._stored.get(stored_name)
        if stored is None:
            raise ModelError(
                f"{self.path}: tensor {stored_name} is missing", "the model is incomplete"
            )
        if self.config.architecture == "phi3" and (fused := self._fused(name)):
            first, all_rows = fused
            if stored.shape == (all_rows, cols):
                return self._turned(name, stored.rows_from(first, rows))
            rows = all_rows  # for the message
        expected = (rows, cols) if cols > 1 or len(stored.shape) > 1 else (rows,)
        if stored.shape != expected:
            raise ModelError(
                f"{stored.path}: tensor {stored.name} has shape {stored.shape}, not {expected}",
                "the file is damaged",
            )
        return stored

    def _fused(self, name: str) -> tuple[int, int] | None:
        """(first row, rows of all) of a matrix that is stored with others: Phi's q k v, gate up."""
        kind = name.rpartition(".")[2]
        q, kv, inner = (self._shapes[f"layers.0.{other}"][0] for other in ("q", "k", "gate"))
        places = {
            "q": (0, q + 2 * kv), "k": (q, q + 2 * kv), "v": (q + kv, q + 2 * kv),
            "gate": (0, 2 * inner), "up": (inner, 2 * inner),
        }  # fmt: skip
        return places.get(kind)

    def _turned(self, name: str, tensor: SourceTensor) -> SourceTensor:
        """q and k of heads that are rotated in part: the pairs that turn first."""
        head_dim, factors = self.config.head_dim, self.config.rope_scaling.freq_factors
        turned = 2 * sum(factor < UNTURNED for factor in factors)
        if name.rpartition(".")[2] not in ("q", "k") or not factors or turned == head_dim:
            return tensor
        return replace(tensor, head_order=turned_order(head_dim, turned))
