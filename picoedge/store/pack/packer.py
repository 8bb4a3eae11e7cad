"""Pack a source: quantized blocks, cut into shards, in an atomically created folder.

Streaming: only a bounded number of rows is in memory at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.config import ModelConfig
from picoedge.errors import UsageError
from picoedge.files import digest, write_all
from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import BLOCK_COLS, FORMATS, Quants
from picoedge.store.encodings import ENCODINGS, Encoding
from picoedge.store.pack.atomic_folder import new_folder
from picoedge.store.pack.manifest import FORMAT_NAME, FORMAT_VERSION
from picoedge.store.pack.matrices import MatrixTarget, Write, choose_format, cut_columns, cut_rows
from picoedge.store.pack.quantize import FORMAT_OF_BITS, quantize
from picoedge.store.pack.reader import Pack
from picoedge.store.pack.sharding import (
    BIASES,
    MATRICES,
    FileLayout,
    Geometry,
    PackLayout,
    ShardLayout,
    shard_layout,
)
from picoedge.store.shards import MANIFEST, UnitKind
from picoedge.store.sources.tensors import ModelSource, SourceTensor

_DEFAULT_BITS = 8
_COLUMN_CUT = ("o", "down")
_WHOLE = ("embed", "head", "final_norm")  # tensors outside the layers
_EMBED_ROWS = 1024

WriteText = Callable[[ModelSource, Path], None]
OnWritten = Callable[[int, int], None]
"""(bytes done, bytes in all)"""


def pack_source(
    source: ModelSource,
    out: Path,
    *,
    bits: int | None = None,
    write_text: WriteText | None = None,
    progress: OnWritten | None = None,
) -> None:
    """Write `source` as the pack folder `out`, atomically.

    `bits` (4, 5, 6, 8, 32; default 8) applies to sources in floats only. `write_text` adds the
    tokenizer's files. Raises ModelError, UnsupportedError, StorageError, UsageError; then nothing
    is left behind and a pack at `out` is unchanged.
    """
    bits = _DEFAULT_BITS if bits is None else bits
    if bits not in FORMAT_OF_BITS:
        raise UsageError(f"--bits {bits} is not possible", "choose 4, 5, 6, 8 or 32")
    packer = _Packer(source, bits, progress)
    with new_folder(Path(out), packer.total) as folder:
        if write_text is not None:
            write_text(source, folder)
        texts = _text_table(folder)
        packer.write(folder)
        manifest = packer.manifest(Path(out), folder, texts)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="ascii")
        Pack.open(folder)  # an unreadable pack must not replace anything


def _text_table(folder: Path) -> dict[str, Any]:
    """Size and hash of the files of `write_text`."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    sizes = {path: path.stat().st_size for path in files}
    return {p.name: {"bytes": n, "blake2b": digest(p, 0, n)} for p, n in sizes.items()}


@contextmanager
def output_file(path: Path, nbytes: int, wrote: Callable[[int], None]) -> Iterator[Write]:
    """A new file of a known size; yields `write(offset, data)`. Unwritten parts are zeros."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def write(offset: int, data: U8 | bytes) -> None:
        write_all(fd, memoryview(data), offset)
        wrote(len(data))

    try:
        os.ftruncate(fd, nbytes)
        yield write
    finally:
        os.close(fd)


def embed_encoding(tensor: SourceTensor, bits: int) -> Encoding:
    """Encoding of an untied embedding: the source's own if it is exact, else Q8_0.

    F32 where `bits` is 32 or rows do not fill blocks.
    """
    if tensor.encoding.format:
        return tensor.encoding
    whole = tensor.cols % BLOCK_COLS == 0 and not (tensor.encoding.is_float and bits == 32)
    return ENCODINGS["Q8_0" if whole else "F32"]


def encode_rows(tensor: SourceTensor, encoding: Encoding, first: int, last: int) -> U8:
    """Rows [first, last) in `encoding`, u8 [n, row bytes]. Raises ModelError on NaN or infinity."""
    if encoding.format and encoding == tensor.encoding:
        tensor.quants(first, last)  # for its checks
        return tensor.raw(first, last)
    values = tensor.floats(first, last)
    if encoding.is_float:
        return np.ascontiguousarray(values, "<f4").view(np.uint8)
    return _q8_0_rows(quantize(values, FORMATS["q8"], tensor.name))


def _q8_0_rows(parts: Quants) -> U8:
    n = len(parts.q)
    scales = parts.scales.reshape(n, -1, 1).view(np.uint8)
    return np.concatenate([scales, parts.q.reshape(n, -1, BLOCK_COLS)], axis=2).reshape(n, -1)


def _if_any(name: str, value: Any) -> dict[str, Any]:
    return {name: value} if value else {}


class _Packer:
    """One packing: a layout, decided before the first byte is written, and the copying."""

    def __init__(self, source: ModelSource, bits: int, progress: OnWritten | None) -> None:
        self.source, self.bits, self._progress = source, bits, progress
        self.config: ModelConfig = source.config
        self.geometry = Geometry.plan(self.config)
        self.embed: Encoding | None = None
        self.layout = self._plan()
        self.files = self.layout.files()
        self.total = sum(file.nbytes for file in self.files)
        self._done = 0

    def _plan(self) -> PackLayout:
        config, row_bytes = self.config, 0
        if not config.tie_word_embeddings:
            self.embed = embed_encoding(self.source.tensor("embed"), self.bits)
            row_bytes = self.embed.row_bytes(config.hidden_size)
        layers = range(config.num_hidden_layers)
        attention = tuple(self._shard("attention", i) for i in layers)
        ffn = tuple(self._shard("ffn", i) for i in layers)
        head = self._shard("head", config.num_hidden_layers)
        # A missing norm is named before hours of packing, not after.
        for name in (*config.norm_lengths, *(BIASES if config.qkv_bias else ())):
            for i in layers:
                self._tensor(name, i)
        return PackLayout(config, self.geometry, attention, ffn, head, row_bytes)

    def _shard(self, kind: UnitKind, layer: int) -> ShardLayout:
        """Layout of a shard, in the formats that suit its tensors."""
        counts = {"o": self.geometry.attention_shards, "down": self.geometry.ffn_shards}
        tensors = {name: self._tensor(name, layer) for name in MATRICES[kind]}
        formats = {
            name: choose_format(t, t.cols // counts.get(name, 1), self.bits)
            for name, t in tensors.items()
        }
        return shard_layout(kind, self.config, self.geometry, formats)

    def _tensor(self, name: str, layer: int) -> SourceTensor:
        """The tensor that is called `name` in a shard or a file of the pack."""
        if name == "head" and self.config.tie_word_embeddings:
            name = "embed"
        return self.source.tensor(name if name in _WHOLE else f"layers.{layer}.{name}")

    def write(self, folder: Path) -> None:
        """Write every safetensors file."""
        for file in self.files:
            with output_file(folder / file.name, file.nbytes, self._wrote) as write:
                write(0, file.header)
                for name, (dtype, *_) in file.tensors.items():
                    if dtype == "F32":
                        write(file.start(name), self._vector(name, file.layer).tobytes())
                for kind in file.kinds:
                    fill = self._fill_embed if kind == "embed" else self._fill_shards
                    fill(kind, file, write)
        self._wrote(self.total - self._done)  # pads are holes

    def _wrote(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self.total)

    def _vector(self, name: str, layer: int) -> F32:
        return self._tensor(name, layer).vector().astype("<f4")

    def _fill_shards(self, kind: UnitKind, file: FileLayout, write: Write) -> None:
        layout, start = self.layout.shard(kind, file.layer), file.start(f"{kind}.000")
        shards = self.geometry.count(kind)
        for name, spec in layout.matrices.items():
            place = MatrixTarget(spec, start, layout.nbytes, shards)
            cut = cut_columns if name in _COLUMN_CUT else cut_rows
            cut(self._tensor(name, file.layer), place, write)
        for name, (at, length) in layout.biases.items():
            values = self._vector(name, file.layer)
            for i in range(shards):
                data = values[i * length : (i + 1) * length].tobytes()
                write(start + i * layout.nbytes + at, data)

    def _fill_embed(self, kind: UnitKind, file: FileLayout, write: Write) -> None:
        assert self.embed is not None
        tensor, start = self.source.tensor(kind), file.start(f"{kind}.000")
        for first in range(0, tensor.rows, _EMBED_ROWS):
            last = min(first + _EMBED_ROWS, tensor.rows)
            rows = encode_rows(tensor, self.embed, first, last)
            write(start + first * rows.shape[1], rows.reshape(-1))

    def manifest(self, out: Path, folder: Path, texts: dict[str, Any]) -> dict[str, Any]:
        """Values of `picoedge.json`; hashes are of the bytes in the files."""
        return {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "name": out.name.removesuffix(".pico"),
            "source": {
                "kind": self.source.kind,
                "name": self.source.name,
                "fingerprint": self.source.fingerprint,
                "file": self.source.path.absolute().name,  # no path: packs are shared
                "tensor_bytes": self.source.tensor_bytes,
                **(
                    {"passed_over": passed_over} if (passed_over := self.source.passed_over) else {}
                ),
            },
            **({"sampling": dict(sampling)} if (sampling := self.source.sampling) else {}),
            **self.layout.to_json(),
            "embed": self.embed.name if self.embed else None,
            "shards": self._shard_table(folder),
            "text": texts,
        }

    def _shard_table(self, folder: Path) -> dict[str, Any]:
        return {
            item.name: {
                "file": item.file,
                "offset": item.offset,
                "bytes": item.nbytes,
                "blake2b": digest(folder / item.file, item.offset, item.nbytes),
            }
            for file in self.files
            for item in file.items()
        }
