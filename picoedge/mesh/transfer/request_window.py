"""The request queue of one donor: items in order, in parts, at most PARTS_AHEAD in flight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from picoedge.mesh.transfer.donor import PART_BYTES
from picoedge.mesh.transfer.donor_client import DonorHandle, Offered, Part

PARTS_AHEAD = 8  # in flight: what a link of 1 Gbit/s takes in 8 ms


@dataclass(eq=False)
class _PartialItem:
    """An item of which parts are asked for. Its buffer is made when the first bytes come."""

    nbytes: int
    places: Iterator[tuple[int, int]]  # offset and bytes of the parts not yet asked for
    buffer: bytearray = field(default_factory=bytearray)
    received: dict[int, int] = field(default_factory=dict)  # offset -> bytes

    def add(self, part: Part) -> bool:
        """Keep a part; returns whether the item is complete.

        A part may come twice: asked for, cancelled, asked for again.
        """
        if not self.received:
            self.buffer = bytearray(self.nbytes)
        self.buffer[part.offset : part.offset + len(part.data)] = part.data
        self.received[part.offset] = len(part.data)
        return sum(self.received.values()) == self.nbytes


@dataclass(eq=False)
class DonorQueue:
    """A donor and the items it is asked for. No other parts come: see `DonorHandle`."""

    donor: DonorHandle
    pack: str
    offered: Offered | None = None
    refused: str = ""  # why it has nothing of the pack
    offer_s: float = -1e9  # when it was last asked what it has
    _items: dict[str, _PartialItem] = field(default_factory=dict)
    _in_flight: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether it is asked for nothing."""
        return not self._items

    def ask_offer(self, now_s: float) -> None:
        """Ask what it has of the pack."""
        self.offer_s = now_s
        self.donor.offer(self.pack)

    def add(self, item: str, nbytes: int) -> None:
        """Ask for an item, after those before it."""
        starts = range(0, max(nbytes, 1), PART_BYTES)
        places = iter([(at, min(PART_BYTES, nbytes - at)) for at in starts])
        self._items[item] = _PartialItem(nbytes, places)
        self.ask_more()

    def ask_more(self) -> None:
        """Ask for parts until PARTS_AHEAD are in flight."""
        for item, partial in self._items.items():
            while self._in_flight < PARTS_AHEAD:
                place = next(partial.places, None)
                if place is None:
                    break
                self.donor.ask(self.pack, item, *place)
                self._in_flight += 1

    def receive(self, part: Part) -> memoryview | None:
        """Keep a part; returns the item's bytes if that completes it."""
        self._in_flight -= 1
        partial = self._items.get(part.item)
        if partial is None or not partial.add(part):
            return None  # cancelled meanwhile, or more is to come
        del self._items[part.item]
        return memoryview(partial.buffer)

    def cancel(self, item: str) -> None:
        """Ask for nothing more of an item; its parts in flight will be ignored."""
        self._items.pop(item, None)

    def refuse(self, item: str) -> None:
        """The donor refused a part."""
        self._in_flight -= 1
        self.cancel(item)

    def reset(self) -> None:
        """Forget all that was asked for."""
        self._items.clear()
        self._in_flight, self.offered = 0, None
        self.donor.forget()
