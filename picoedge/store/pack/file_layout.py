"""Layout of a pack's safetensors files: every name and offset, computed before writing.

The header is padded with spaces and each span of shards is preceded by a pad tensor, so that data
and spans begin at a multiple of 4096 bytes and can be read with O_DIRECT.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from picoedge.config import ModelConfig
from picoedge.store.pack.layout import Geometry, ShardLayout, round_up
from picoedge.store.sources.shapes import norm_lengths

SPAN_ALIGN = 4096


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
        for norm, length in norm_lengths(self.config).items():
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
