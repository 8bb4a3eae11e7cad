"""Units: what is held in memory, or streamed through it, as one. A run of shards of one kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from picoedge.store.pages import page_down, page_up

UnitKind = Literal["attention", "ffn", "head"]


@dataclass(frozen=True)
class Unit:
    """A run of shards, in one piece of one file. The head counts as the layer after the last."""

    kind: UnitKind
    layer: int
    shards: range
    file: str
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """First byte of the file behind the unit."""
        return self.offset + self.nbytes

    @property
    def shard_bytes(self) -> int:
        """Bytes of one shard."""
        return self.nbytes // len(self.shards)

    def part(self, first: int, last: int) -> Unit:
        """Shards first .. last-1, counted from the unit's own first."""
        each = self.shard_bytes
        shards, offset = self.shards[first:last], self.offset + first * each
        return Unit(self.kind, self.layer, shards, self.file, offset, len(shards) * each)

    def shard_at(self, offset: int) -> str:
        """Name in the shard table of the shard that has this byte of the file, or is nearest."""
        index = (min(max(offset, self.offset), self.end - 1) - self.offset) // self.shard_bytes
        folder = self.file.removesuffix(".safetensors")
        return f"{folder}/{self.kind}.{self.shards[index]:03d}"


def page_range(unit: Unit) -> tuple[int, int]:
    """The unit's bytes widened to pages: what is read."""
    return page_down(unit.offset), page_up(unit.end)
