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
from picoedge.store.shards import LAYER_KINDS, PackItem, UnitKind

SHARD_ALIGN = 64
MATRICES: dict[UnitKind, tuple[str, ...]] = {
    "attention": ("q", "k", "v", "o"),
    "ffn": ("gate", "up", "down"),
    "head": ("head",),
}
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

    def count(self, kind: UnitKind) -> int:
        """Number of shards of a kind in a layer; an embedding is cut like the head."""
        counts = {"attention": self.attention_shards, "ffn": self.ffn_shards}
        return counts.get(kind, self.head_shards)

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


def shard_layout(
    kind: UnitKind, config: ModelConfig, geometry: Geometry, formats: Mapping[str, str]
) -> ShardLayout:
    """Layout of one shard, its matrices in `formats`. Raises ModelError where one does not fit.

    Attention: q, k, v rows, o columns and biases of one key-value head. FFN: gate and up rows, down
    columns of some of the intermediate dimension. Head: some rows of the vocabulary.
    """
    hidden, width = config.hidden_size, geometry.ffn_shard_cols
    q_rows, kv_rows = config.heads_per_group * config.head_dim, config.head_dim
    shapes = {
        "q": (q_rows, hidden), "k": (kv_rows, hidden), "v": (kv_rows, hidden),
        "o": (hidden, q_rows), "gate": (width, hidden), "up": (width, hidden),
        "down": (hidden, width), "head": (geometry.head_shard_rows, hidden),
    }  # fmt: skip
    at = 0
    matrices: dict[str, MatrixSpec] = {}
    for name in MATRICES[kind]:
        rows, cols = shapes[name]
        fmt = FORMATS[formats[name]]
        superblock = math.gcd(SUPERBLOCK_COLS, cols) if fmt.superblocks else 0
        matrices[name] = MatrixSpec(fmt, rows, cols, at, superblock)
        at += matrices[name].nbytes
    biases: dict[str, tuple[int, int]] = {}
    for name in BIASES if config.qkv_bias and kind == "attention" else ():
        biases[name] = (at, shapes[name[0]][0])
        at += round_up(4 * biases[name][1], SHARD_ALIGN)
    return ShardLayout(matrices, biases, round_up(at, SHARD_ALIGN))


def file_stem(kind: UnitKind, layer: int) -> str:
    """Name of the file with the shards of a kind, without its suffix."""
    return f"layer-{layer:03d}" if kind in LAYER_KINDS else kind


@dataclass(eq=False)
class FileLayout:
    """One safetensors file: tensors without gaps, spans of shards at page boundaries."""

    name: str
    layer: int = 0
    tensors: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """tensor -> (dtype, start, end), offsets from the start of the data"""
    kinds: list[UnitKind] = field(default_factory=list)
    """of its spans of shards"""

    def add(self, tensor: str, dtype: str, nbytes: int) -> None:
        """Append a one-dimensional tensor."""
        start = self._end()
        self.tensors[tensor] = (dtype, start, start + nbytes)

    def add_span(self, kind: UnitKind, count: int, nbytes: int) -> None:
        """Append `count` shards of `nbytes` from the next page boundary."""
        self.kinds.append(kind)
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

    def items(self) -> Iterator[PackItem]:
        """Rows of the shard table, without hashes: every tensor but the pads."""
        for tensor, (_, start, end) in self.tensors.items():
            if not tensor.startswith("pad."):
                name = f"{self.name.removesuffix('.safetensors')}/{tensor}"
                yield PackItem(name, self.name, len(self.header) + start, end - start)


@dataclass(frozen=True, eq=False)
class PackLayout:
    """Layout of a whole pack: the shards of each layer and of the head, and their files."""

    config: ModelConfig
    geometry: Geometry
    attention: tuple[ShardLayout, ...]
    ffn: tuple[ShardLayout, ...]
    head: ShardLayout
    embed_row_bytes: int  # 0 where the embedding is tied to the head

    def shard(self, kind: UnitKind, layer: int) -> ShardLayout:
        """Layout of each shard of a kind in a layer."""
        if kind == "embed":
            return ShardLayout({}, {}, self.geometry.head_shard_rows * self.embed_row_bytes)
        if kind == "head":
            return self.head
        return self.attention[layer] if kind == "attention" else self.ffn[layer]

    def to_json(self) -> dict[str, Any]:
        """The fields of `picoedge.json` from which the layout is computed again."""
        layers = zip(self.attention, self.ffn, strict=True)
        return {
            "config": self.config.to_json(),
            "geometry": {
                "ffn_shard_cols": self.geometry.ffn_shard_cols,
                "head_shard_rows": self.geometry.head_shard_rows,
            },
            "layers": [{"attention": a.to_json(), "ffn": f.to_json()} for a, f in layers],
            "head": self.head.to_json(),
        }

    def files(self) -> list[FileLayout]:
        """Every safetensors file, in the order they are written.

        `embed`: rows of an untied embedding, cut like the head's. `layer-NNN`: norms, attention
        shards, FFN shards. `head`: the final norm and the vocabulary shards.
        """
        norms, layers = self.config.norm_lengths, self.config.num_hidden_layers
        embed = [self._file(0, {}, ("embed",))] if self.embed_row_bytes else []
        head = self._file(layers, {"final_norm": self.config.hidden_size}, ("head",))
        return [*embed, *(self._file(i, norms, LAYER_KINDS) for i in range(layers)), head]

    def _file(
        self, layer: int, norms: Mapping[str, int], kinds: tuple[UnitKind, ...]
    ) -> FileLayout:
        file = FileLayout(f"{file_stem(kinds[0], layer)}.safetensors", layer)
        for norm, length in norms.items():
            file.add(norm, "F32", 4 * length)
        for kind in kinds:
            file.add_span(kind, self.geometry.count(kind), self.shard(kind, layer).nbytes)
        return file
