"""Pack a source: quantized blocks, cut into shards, in an atomically created folder.

Streaming: only a bounded number of rows is in memory at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.config import ModelConfig
from picoedge.errors import UsageError
from picoedge.files import digest, write_all
from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import BLOCK_COLS, FORMATS, MatrixSpec, Quants
from picoedge.store.encodings import ENCODINGS, Encoding
from picoedge.store.pack.atomic_folder import new_folder
from picoedge.store.pack.manifest import FORMAT_NAME, FORMAT_VERSION
from picoedge.store.pack.matrices import MatrixTarget, choose_format, cut_columns, cut_rows
from picoedge.store.pack.quantize import FORMAT_OF_BITS, quantize
from picoedge.store.pack.reader import Pack
from picoedge.store.pack.sharding import (
    ATTENTION_MATRICES,
    BIASES,
    FFN_MATRICES,
    FileLayout,
    Geometry,
    PackLayout,
    ShardLayout,
    attention_layout,
    ffn_layout,
    head_layout,
)
from picoedge.store.shards import MANIFEST
from picoedge.store.sources.source import ModelSource
from picoedge.store.sources.tensors import SourceTensor

_DEFAULT_BITS = 8
_COLUMN_CUT = ("o", "down")
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


class OutputFile:
    """A new file of a known size, written in any order; unwritten parts are zeros."""

    def __init__(self, path: Path, nbytes: int, wrote: Callable[[int], None]) -> None:
        self.path = path
        self._wrote = wrote
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.ftruncate(self._fd, nbytes)
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, offset: int, data: U8 | bytes) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data) if isinstance(data, bytes) else data.data
        write_all(self._fd, view, offset)
        self._wrote(len(view))

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


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
        config, width = self.config, self.geometry.ffn_shard_cols
        row_bytes = 0
        if not config.tie_word_embeddings:
            self.embed = embed_encoding(self.source.tensor("embed"), self.bits)
            row_bytes = self.embed.row_bytes(config.hidden_size)
        attention, ffn = [], []
        for i in range(config.num_hidden_layers):
            attention.append(attention_layout(config, self._formats(i, ATTENTION_MATRICES)))
            ffn.append(ffn_layout(config, width, self._formats(i, FFN_MATRICES)))
            self._check_vectors(i)
        head = self.source.tensor(self._head)
        head_format = choose_format(head, config.hidden_size, self.bits)
        head_shard = head_layout(config, self.geometry.head_shard_rows, head_format)
        return PackLayout(
            config, self.geometry, tuple(attention), tuple(ffn), head_shard, row_bytes
        )

    @property
    def _head(self) -> str:
        return "embed" if self.config.tie_word_embeddings else "head"

    def _formats(self, layer: int, names: tuple[str, ...]) -> dict[str, str]:
        shards = {"o": self.geometry.attention_shards, "down": self.geometry.ffn_shards}
        tensors = {name: self.source.tensor(f"layers.{layer}.{name}") for name in names}
        return {
            name: choose_format(t, t.cols // shards.get(name, 1), self.bits)
            for name, t in tensors.items()
        }

    def _check_vectors(self, layer: int) -> None:
        # A missing norm is named before hours of packing, not after.
        biases = BIASES if self.config.qkv_bias else ()
        for name in (*self.config.norm_lengths, *biases):
            self.source.tensor(f"layers.{layer}.{name}")

    def write(self, folder: Path) -> None:
        """Write every safetensors file."""
        fill = {"head.safetensors": self._fill_head, "embed.safetensors": self._fill_embed}
        for file in self.files:
            with OutputFile(folder / file.name, file.nbytes, self._wrote) as output:
                output.write(0, file.header)
                fill.get(file.name, self._fill_layer)(file, output)
        self._wrote(self.total - self._done)  # pads are holes

    def _wrote(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self.total)

    def _vector(self, name: str) -> F32:
        return self.source.tensor(name).vector().astype("<f4")

    def _fill_layer(self, file: FileLayout, output: OutputFile) -> None:
        layer = int(file.name[len("layer-") : -len(".safetensors")])
        prefix = f"layers.{layer}."
        for norm in self.config.norm_lengths:
            output.write(file.start(norm), self._vector(prefix + norm).tobytes())
        attention, ffn = self.layout.attention[layer], self.layout.ffn[layer]
        self._fill_shards(file, output, "attention", attention, prefix)
        self._fill_shards(file, output, "ffn", ffn, prefix)

    def _fill_shards(
        self, file: FileLayout, output: OutputFile, kind: str, layout: ShardLayout, prefix: str
    ) -> None:
        start = file.start(f"{kind}.000")
        shards = self.geometry.attention_shards if kind == "attention" else self.geometry.ffn_shards
        for name, spec in layout.matrices.items():
            place = MatrixTarget(spec, start, layout.nbytes, shards)
            cut = cut_columns if name in _COLUMN_CUT else cut_rows
            cut(self.source.tensor(prefix + name), place, output.write)
        for name, (at, length) in layout.biases.items():
            values = self._vector(prefix + name)
            for i in range(shards):
                data = values[i * length : (i + 1) * length].tobytes()
                output.write(start + i * layout.nbytes + at, data)

    def _fill_head(self, file: FileLayout, output: OutputFile) -> None:
        output.write(file.start("final_norm"), self._vector("final_norm").tobytes())
        head = self.layout.head
        spec: MatrixSpec = head.matrices["head"]
        place = MatrixTarget(spec, file.start("head.000"), head.nbytes, self.geometry.head_shards)
        cut_rows(self.source.tensor(self._head), place, output.write)

    def _fill_embed(self, file: FileLayout, output: OutputFile) -> None:
        assert self.embed is not None
        tensor, start = self.source.tensor("embed"), file.start("embed.000")
        for first in range(0, tensor.rows, _EMBED_ROWS):
            last = min(first + _EMBED_ROWS, tensor.rows)
            rows = encode_rows(tensor, self.embed, first, last)
            output.write(start + first * rows.shape[1], rows.reshape(-1))

    def manifest(self, out: Path, folder: Path, texts: dict[str, Any]) -> dict[str, Any]:
        """Values of `picoedge.json`; hashes are of the bytes in the files."""
        layers = zip(self.layout.attention, self.layout.ffn, strict=True)
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
            },
            "config": self.config.to_json(),
            "geometry": {
                "ffn_shard_cols": self.geometry.ffn_shard_cols,
                "head_shard_rows": self.geometry.head_shard_rows,
            },
            "layers": [{"attention": a.to_json(), "ffn": f.to_json()} for a, f in layers],
            "head": self.layout.head.to_json(),
            "embed": self.embed.name if self.embed else None,
            "shards": self._shard_table(folder),
            "text": texts,
        }

    def _shard_table(self, folder: Path) -> dict[str, Any]:
        return {
            entry.name: {
                "file": entry.file,
                "offset": entry.offset,
                "bytes": entry.nbytes,
                "blake2b": digest(folder / entry.file, entry.offset, entry.nbytes),
            }
            for file in self.files
            for entry in file.entries()
        }
