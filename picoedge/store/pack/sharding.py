"""Pack layout: how a model is cut into shards, and the place of every byte in the pack's files.

Computed from config, geometry and formats alone. The packer writes by it, the reader recomputes it
and compares: offsets claimed by a file are never trusted. In the safetensors files the header is
padded with spaces and each span of shards is preceded by a pad tensor, so that data and spans begin
at a multiple of 4096 bytes and can be read with O_DIRECT.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from picoedge.config import ModelConfig
from picoedge.errors import ModelError
from picoedge.kernels.blocks import FORMATS, SUPERBLOCK_COLS, TILE_ROWS, MatrixSpec

SHARD_ALIGN = 64
ATTENTION_MATRICES = ("q", "k", "v", "o")
FFN_MATRICES = ("gate", "up", "down")
BIASES = ("q_bias", "k_bias", "v_bias")
_FFN_WIDTHS = (256, 128, 64, 32)
SPAN_ALIGN = 4096


def round_up(n: int, step: int) -> int:
    """`n` rounded up to a multiple of `step`."""
    return -(-n // step) * step


@dataclass(frozen=True)
class Geometry:
    """Number and width of the shards of each kind."""

    attention_shards: int  # one per key-value head
    ffn_shards: int
    ffn_shard_cols: int
    head_shards: int
    head_shard_rows: int

    @classmethod
    def plan(cls, config: ModelConfig) -> Geometry:
        """The geometry of new packs."""
        inner = config.intermediate_size
        width = next((w for w in _FFN_WIDTHS if inner % w == 0), inner)
        return cls.of(config, width, _head_shard_rows(config.vocab_size))

    @classmethod
    def of(cls, config: ModelConfig, ffn_shard_cols: int, head_shard_rows: int) -> Geometry:
        """The geometry with these widths. Raises ModelError where they do not fit the model."""
        if ffn_shard_cols <= 0 or config.intermediate_size % ffn_shard_cols:
            raise ModelError(f"FFN shards of {ffn_shard_cols} columns do not divide the model")
        if head_shard_rows <= 0 or head_shard_rows % TILE_ROWS:
            raise ModelError(f"vocabulary shards of {head_shard_rows} rows are not tiles of 16")
        return cls(
            attention_shards=config.num_key_value_heads,
            ffn_shards=config.intermediate_size // ffn_shard_cols,
            ffn_shard_cols=ffn_shard_cols,
            head_shards=-(-config.vocab_size // head_shard_rows),
            head_shard_rows=head_shard_rows,
        )


def _head_shard_rows(vocab_size: int) -> int:
    """Rows of a head shard: of 48 to 80 shards, the count that pads the last one least."""
    tiles = -(-vocab_size // TILE_ROWS)

    def waste(count: int) -> tuple[int, int]:
        size = -(-tiles // count)
        return -(-tiles // size) * size - tiles, abs(count - 64)

    return -(-tiles // min(range(48, 81), key=waste)) * TILE_ROWS


@dataclass(frozen=True)
class ShardLayout:
    """Matrices and biases inside one shard; `biases`: name -> (byte offset, number of f32)."""

    matrices: dict[str, MatrixSpec]
    biases: dict[str, tuple[int, int]]
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for `picoedge.json`."""
        matrices = {
            name: {
                "format": spec.format.name, "rows": spec.rows, "cols": spec.cols,
                "superblock": spec.superblock, "offset": spec.offset,
            }
            for name, spec in self.matrices.items()
        }  # fmt: skip
        biases = {name: {"offset": at, "length": n} for name, (at, n) in self.biases.items()}
        return {"matrices": matrices, "biases": biases, "bytes": self.nbytes}


def attention_layout(config: ModelConfig, formats: Mapping[str, str]) -> ShardLayout:
    """One key-value head: its q, k, v rows, o columns and biases."""
    q_rows, kv_rows = config.heads_per_group * config.head_dim, config.head_dim
    hidden = config.hidden_size
    shapes = {"q": (q_rows, hidden), "k": (kv_rows, hidden), "v": (kv_rows, hidden)}
    shapes["o"] = hidden, q_rows
    lengths = {"q_bias": q_rows, "k_bias": kv_rows, "v_bias": kv_rows}
    return _shard_layout(shapes, formats, lengths if config.qkv_bias else {})


def ffn_layout(config: ModelConfig, width: int, formats: Mapping[str, str]) -> ShardLayout:
    """`width` of the intermediate dimension: gate and up rows, down columns."""
    hidden = config.hidden_size
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    return _shard_layout(shapes, formats, {})


def head_layout(config: ModelConfig, rows: int, format_name: str) -> ShardLayout:
    """`rows` of the vocabulary."""
    return _shard_layout({"head": (rows, config.hidden_size)}, {"head": format_name}, {})


def _shard_layout(
    shapes: Mapping[str, tuple[int, int]], formats: Mapping[str, str], biases: Mapping[str, int]
) -> ShardLayout:
    at = 0
    matrices: dict[str, MatrixSpec] = {}
    for name, (rows, cols) in shapes.items():
        fmt = FORMATS[formats[name]]
        superblock = math.gcd(SUPERBLOCK_COLS, cols) if fmt.superblocks else 0
        matrices[name] = MatrixSpec(fmt, rows, cols, at, superblock)
        at += matrices[name].nbytes
    places: dict[str, tuple[int, int]] = {}
    for name, length in biases.items():
        places[name] = (at, length)
        at += round_up(4 * length, SHARD_ALIGN)
    return ShardLayout(matrices, places, round_up(at, SHARD_ALIGN))


@dataclass(frozen=True)
class TableEntry:
    """One row of the shard table: a named byte range of a file."""

    name: str
    file: str
    offset: int
    nbytes: int


@dataclass(eq=False)
class FileLayout:
    """One safetensors file: tensors without gaps, spans of shards at page boundaries."""

    name: str
    tensors: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """tensor -> (dtype, start, end), offsets from the start of the data"""

    def add(self, tensor: str, dtype: str, nbytes: int) -> None:
        """Append a one-dimensional tensor."""
        start = self._end()
        self.tensors[tensor] = (dtype, start, start + nbytes)

    def add_span(self, kind: str, count: int, nbytes: int) -> None:
        """Append `count` shards of `nbytes` from the next page boundary."""
        end = self._end()
        if end % SPAN_ALIGN:
            self.add(f"pad.{kind}", "U8", round_up(end, SPAN_ALIGN) - end)
        for i in range(count):
            self.add(f"{kind}.{i:03d}", "U8", nbytes)

    def _end(self) -> int:
        return next(reversed(self.tensors.values()))[2] if self.tensors else 0

    @cached_property
    def header(self) -> bytes:
        """Bytes before the data: the length, then JSON padded to a page boundary."""
        entries: dict[str, Any] = {"__metadata__": {"format": "picoedge"}}
        for name, (dtype, start, end) in self.tensors.items():
            shape = [(end - start) // (4 if dtype == "F32" else 1)]
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text = text.ljust(round_up(8 + len(text), SPAN_ALIGN) - 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return len(self.header) + self._end()

    def start(self, tensor: str) -> int:
        """File offset of a tensor."""
        return len(self.header) + self.tensors[tensor][1]

    def entries(self) -> Iterator[TableEntry]:
        """Rows of the shard table: every tensor but the pads."""
        for tensor, (_, start, end) in self.tensors.items():
            if not tensor.startswith("pad."):
                name = f"{self.name.removesuffix('.safetensors')}/{tensor}"
                yield TableEntry(name, self.name, len(self.header) + start, end - start)


@dataclass(frozen=True, eq=False)
class PackLayout:
    """Layout of a whole pack: the shards of each layer and of the head, and their files."""

    config: ModelConfig
    geometry: Geometry
    attention: tuple[ShardLayout, ...]
    ffn: tuple[ShardLayout, ...]
    head: ShardLayout
    embed_row_bytes: int  # 0 where the embedding is tied to the head

    def layer_file(self, index: int) -> FileLayout:
        """`layer-NNN.safetensors`: norms, attention shards, FFN shards."""
        file = FileLayout(f"layer-{index:03d}.safetensors")
        for norm, length in self.config.norm_lengths.items():
            file.add(norm, "F32", 4 * length)
        file.add_span("attention", self.geometry.attention_shards, self.attention[index].nbytes)
        file.add_span("ffn", self.geometry.ffn_shards, self.ffn[index].nbytes)
        return file

    def head_file(self) -> FileLayout:
        """`head.safetensors`: the final norm and the vocabulary shards."""
        file = FileLayout("head.safetensors")
        file.add("final_norm", "F32", 4 * self.config.hidden_size)
        file.add_span("head", self.geometry.head_shards, self.head.nbytes)
        return file

    def embed_file(self) -> FileLayout:
        """`embed.safetensors`: rows of an untied embedding, cut like the head's."""
        file = FileLayout("embed.safetensors")
        shard_bytes = self.geometry.head_shard_rows * self.embed_row_bytes
        file.add_span("embed", self.geometry.head_shards, shard_bytes)
        return file

    def files(self) -> list[FileLayout]:
        """Every safetensors file, in the order they are written."""
        layers = [self.layer_file(i) for i in range(self.config.num_hidden_layers)]
        embed = [self.embed_file()] if self.embed_row_bytes else []
        return [*embed, *layers, self.head_file()]
