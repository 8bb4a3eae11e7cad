"""What one donor of a transfer is asked for: items in order, each in parts, a few on their way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from picoedge.mesh.transfer.donor import PART_BYTES
from picoedge.mesh.transfer.donor_client import Offered, Part, Source

PARTS_AHEAD = 8  # asked for and not yet here: what a link of 1 Gbit/s takes in 8 ms


@dataclass(eq=False)
class _Coming:
    """An item on its way. Its buffer is made when the first bytes of it are here."""

    nbytes: int
    places: Iterator[tuple[int, int]]
    buffer: bytearray = field(default_factory=bytearray)
    came: dict[int, int] = field(default_factory=dict)  # offset -> bytes

    def take(self, part: Part) -> bool:
        """Keep a part; whether all have come. One may come twice: asked for, called off, asked."""
        if not self.came:
            self.buffer = bytearray(self.nbytes)
        self.buffer[part.offset : part.offset + len(part.data)] = part.data
        self.came[part.offset] = len(part.data)
        return sum(self.came.values()) == self.nbytes


@dataclass(eq=False)
class Feed:
    """A donor and what it is asked for. No part comes that was not asked for: see `Source`."""

    source: Source
    pack: str
    offered: Offered | None = None
    refused: str = ""  # why it has nothing of the pack
    offer_s: float = -1e9  # when it was last asked what it has
    _coming: dict[str, _Coming] = field(default_factory=dict)
    _on_way: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether it is asked for nothing."""
        return not self._coming

    def ask_offer(self, now_s: float) -> None:
        """Ask what it has of the pack."""
        self.offer_s = now_s
        self.source.offer(self.pack)

    def add(self, item: str, nbytes: int) -> None:
        """Ask for an item, after those before."""
        starts = range(0, max(nbytes, 1), PART_BYTES)
        places = iter([(at, min(PART_BYTES, nbytes - at)) for at in starts])
        self._coming[item] = _Coming(nbytes, places)
        self.go_on()

    def go_on(self) -> None:
        """Ask for parts until enough are on their way."""
        for item, coming in self._coming.items():
            while self._on_way < PARTS_AHEAD:
                place = next(coming.places, None)
                if place is None:
                    break
                self.source.ask(self.pack, item, *place)
                self._on_way += 1

    def take(self, part: Part) -> memoryview | None:
        """Keep a part that came; returns the item's bytes where it was the last of it."""
        self._on_way -= 1
        coming = self._coming.get(part.item)
        if coming is None or not coming.take(part):
            return None  # called off meanwhile, or more is to come
        del self._coming[part.item]
        return memoryview(coming.buffer)

    def drop(self, item: str) -> None:
        """Ask for nothing more of an item; parts on their way are ignored."""
        self._coming.pop(item, None)

    def refuse(self, item: str) -> None:
        """The donor refused a part."""
        self._on_way -= 1
        self.drop(item)

    def reset(self) -> None:
        """Nothing that was asked for counts any more."""
        self._coming.clear()
        self._on_way, self.offered = 0, None
        self.source.forget()
