"""What a packer reads from: canonical tensors of a GGUF file or a Hugging Face folder.

Canonical names: `embed`, `head`, `final_norm`, and per layer i `layers.i.` with `q k v o gate
up down`, `q_bias k_bias v_bias`, and the norms of `layout.norm_lengths`. Rows of q and k are in
Hugging Face's half-split rope order whatever the file's, and norms are the effective weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from picoedge.config import ModelConfig
from picoedge.errors import ModelError
from picoedge.kernels.blocks import F32, U8, Quants
from picoedge.store.encodings import Encoding
from picoedge.store.files import read_at, reading

_HASHED_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class SourceTensor:
    """One tensor as it lies in a file: [rows, cols], row-major, read a run of rows at a time.

    `paired_head` is the head size where rope pairs are stored side by side (GGUF's llama); rows
    are handed out in half-split order. `added` is put on every value (Gemma's norms: 1).
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
        """Bytes in the file."""
        return self.rows * self.encoding.row_bytes(self.cols)

    def raw(self, first: int, last: int) -> U8:
        """Bytes of rows [first, last), u8 [n, row bytes]."""
        if not self.paired_head:
            return self._stored(first, last)
        size = self.paired_head
        start, end = first // size * size, -(-last // size) * size
        pairs = self._stored(start, end).reshape(-1, size // 2, 2, self.encoding.row_bytes(self.cols))
        halves = pairs.transpose(0, 2, 1, 3).reshape(end - start, -1)
        return halves[first - start : last - start]

    def _stored(self, first: int, last: int) -> U8:
        row_bytes = self.encoding.row_bytes(self.cols)
        start = self.offset + first * row_bytes
        return read_at(self.path, start, (last - first) * row_bytes).reshape(-1, row_bytes)

    def quants(self, first: int, last: int) -> Quants:
        """Rows [first, last) in the encoding's own format; raises ModelError on a bad scale."""
        parts = self.encoding.quants(self.raw(first, last))
        for values in (parts.scales, parts.mins, parts.superscales, parts.supermins):
            if values is not None and values.dtype.kind == "f":
                self._refuse_nonfinite(values)
        return parts

    def floats(self, first: int, last: int) -> F32:
        """Rows [first, last) as f32; raises ModelError on NaN or infinity."""
        values = self.encoding.floats(self.raw(first, last))
        self._refuse_nonfinite(values)
        return values + np.float32(self.added) if self.added else values

    def vector(self) -> F32:
        """A tensor of one dimension."""
        return self.floats(0, self.rows).reshape(-1)

    def _refuse_nonfinite(self, values: np.ndarray[Any, Any]) -> None:
        if not np.isfinite(values).all():
            raise ModelError(
                f"tensor {self.name} of {self.path} holds NaN or infinity",
                "the file is damaged: get it again",
            )


class Source(Protocol):
    """A model to be packed."""

    kind: str  # "gguf" or "huggingface"
    name: str
    path: Path
    config: ModelConfig
    tensor_bytes: int
    fingerprint: str  # changes when a file does: sizes, times, and the first bytes' hash
    metadata: Mapping[str, Any]  # a GGUF's key-values, large ones read on access

    def tensor(self, name: str) -> SourceTensor:
        """The tensor with this canonical name; raises ModelError naming it where it is missing."""


def open_source(path: Path) -> Source:
    """Open a `.gguf` file (any part of a split one) or a Hugging Face folder.

    Raises ModelError where it is missing or damaged, UnsupportedError where it is of a kind,
    architecture or tensor type that is not supported.
    """
    from picoedge.store.gguf_source import GgufSource
    from picoedge.store.huggingface import open_folder

    path = Path(path)
    with reading(path):
        is_folder = path.is_dir()
    if not is_folder:
        return GgufSource(path)
    if (path / "picoedge.json").exists():
        raise ModelError(f"{path} is already packed", "use it as it is")
    return open_folder(path)


def fingerprint(paths: Sequence[Path]) -> str:
    """Names, sizes and times of the files and a hash of the first one's beginning."""
    hasher = hashlib.blake2b(digest_size=16)
    for path in paths:
        with reading(path):
            stat = path.stat()
        hasher.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    with reading(paths[0]):
        size = min(_HASHED_BYTES, paths[0].stat().st_size)
    hasher.update(read_at(paths[0], 0, size))
    return hasher.hexdigest()
