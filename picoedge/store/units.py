"""Unit: a span of shards that is resident, or streamed, as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from picoedge.store.pages import page_down, page_up

UnitKind = Literal["attention", "ffn", "head"]


@dataclass(frozen=True)
class Unit:
    """A span of shards of one kind, contiguous in a file. The head is the layer after the last."""

    kind: UnitKind
    layer: int
    shards: range
    file: str
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """File offset of the first byte after the unit."""
        return self.offset + self.nbytes

    @property
    def shard_bytes(self) -> int:
        """Bytes of one shard."""
        return self.nbytes // len(self.shards)

    def part(self, first: int, last: int) -> Unit:
        """Sub-unit of shards [first, last), counted from the unit's first."""
        size = self.shard_bytes
        shards, offset = self.shards[first:last], self.offset + first * size
        return Unit(self.kind, self.layer, shards, self.file, offset, len(shards) * size)

    def shard_at(self, offset: int) -> str:
        """Shard-table name of the shard at this file offset, or nearest to it."""
        index = (min(max(offset, self.offset), self.end - 1) - self.offset) // self.shard_bytes
        folder = self.file.removesuffix(".safetensors")
        return f"{folder}/{self.kind}.{self.shards[index]:03d}"


def page_range(unit: Unit) -> tuple[int, int]:
    """File range [start, end) of the whole pages that the unit lies in."""
    return page_down(unit.offset), page_up(unit.end)
