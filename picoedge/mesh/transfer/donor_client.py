"""The client of one donor: asks its daemon for offers, and for items in order, in parts."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.errors import ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.transfer.donor import MAX_ITEM_NAME, OFFER, PART_BYTES, READ, unpack_bits
from picoedge.mesh.transport import curve
from picoedge.mesh.transport.connection import Inbox, InboxGuard
from picoedge.mesh.transport.frames import HEADER, Header, Kind, unpack
from picoedge.mesh.transport.messages import ERROR, MAX_ID, REPLY, Body, Dialect

if TYPE_CHECKING:
    from picoedge.mesh.addresses import Address
    from picoedge.mesh.identity.identity import KeyPair
    from picoedge.mesh.transport.curve import Context, Socket

PARTS_AHEAD = 8  # in flight: what a link of 1 Gbit/s takes in 8 ms
_MAX_ITEMS = 1 << 20  # above any pack: 100 layers of 1000 shards
# Unread while a disk is slow: parts that are asked for, some twice, and an offer. More ends it.
_INBOX_BYTES = 8 * PARTS_AHEAD * PART_BYTES
_RETRY_S = 0.1  # until a donor that does not listen is tried again
_NEVER = -1  # libzmq does not connect again by itself: a flood would only begin anew
_UP, _DOWN = zmq.EVENT_CONNECTED, (zmq.EVENT_CLOSED, zmq.EVENT_DISCONNECTED)


@dataclass(frozen=True)
class Offered:
    """A donor has the pack: `held` is text of `donor.pack_bits`; None stands for all items."""

    name: str
    manifest_bytes: int
    items: int
    held: str | None

    def names(self, order: Sequence[str]) -> Sequence[str]:
        """The items it has, of the pack's items in `order`. Raises ProtocolError."""
        if self.items != len(order):
            raise ProtocolError(f"{self.items} items of a pack that has {len(order)}")
        if self.held is None:
            return order
        bits = unpack_bits(self.held, len(order))
        return [name for name, bit in zip(order, bits, strict=True) if bit]


@dataclass(frozen=True)
class Part:
    """Some bytes of an item came; `whole` is all of it once it is complete."""

    item: str
    nbytes: int
    whole: memoryview | None = None
    version: int = 0  # of the item's bytes; all of `whole` have one


@dataclass(frozen=True)
class ItemRefused:
    """A donor cannot give an item; "" is the whole pack."""

    item: str
    reason: str


DonorAnswer = Offered | Part | ItemRefused


@dataclass(eq=False)
class _PartialItem:
    """An item of which parts are asked for. Its buffer is made when the first bytes come."""

    nbytes: int
    places: Iterator[tuple[int, int]]  # offset and bytes of the parts not yet asked for
    version: int = 0  # of the parts that came
    buffer: bytearray = field(default_factory=bytearray)
    received: dict[int, int] = field(default_factory=dict)  # offset -> bytes

    def add(self, offset: int, data: memoryview, version: int) -> bool:
        """Keep a part; returns whether the item is complete.

        A part may come twice: asked for, cancelled, asked for again.
        """
        if not self.received:
            self.buffer, self.version = bytearray(self.nbytes), version
        self.buffer[offset : offset + len(data)] = data
        self.received[offset] = len(data)
        return sum(self.received.values()) == self.nbytes


class DonorClient:
    """Asks a board's daemon over a `socket` of its own, readable when answers may be there.

    No method waits. `offered` are the pack's items that it has, `refused` why it has none.
    Close it, and its guard.
    """

    def __init__(
        self,
        context: Context,
        keys: KeyPair,
        address: Address,
        server_key: str,
        guard: InboxGuard,
    ) -> None:
        """`server_key`: the board's public key in Z85."""
        self.socket: Socket = context.socket(zmq.DEALER)
        bounds = curve.SocketBounds(bounds_received=False)
        curve.configure_client(self.socket, keys, server_key, bounds)
        self.socket.reconnect_ivl = _NEVER
        self._monitor: Any = self.socket.get_monitor_socket(_UP | sum(_DOWN))
        self._guard, self._inbox, self._endpoint = guard, Inbox(_INBOX_BYTES), address.endpoint
        self._retry_s = math.inf
        self.socket.connect(self._endpoint)
        guard.find_by(self._read_monitor)
        self._dialect = Dialect()
        self._numbers = itertools.count(1)
        self._items: dict[str, _PartialItem] = {}
        self._parts: dict[int, tuple[str, int, int]] = {}  # in flight: id -> item, offset, bytes
        self.reset()

    def reset(self) -> None:
        """Forget all that was asked for: answers to it are ignored."""
        self._items.clear()
        self._parts.clear()
        self._pack, self._offer = "", 0  # the latest one asked for, and the question's id
        self.offered: Offered | None = None
        self.refused = ""
        self.offer_s = -1e9  # when it was last asked what it has

    @property
    def is_idle(self) -> bool:
        """Whether it is asked for no item."""
        return not self._items

    def ask_offer(self, pack: str, now_s: float) -> None:
        """Ask which items of a pack it has; an earlier question is forgotten."""
        self._reconnect()
        self.offer_s, self._pack = now_s, pack
        self._offer = self._send(OFFER, {"pack": pack})

    def add(self, item: str, nbytes: int) -> None:
        """Ask for an item of that pack, after those before it."""
        starts = range(0, max(nbytes, 1), PART_BYTES)
        places = iter([(at, min(PART_BYTES, nbytes - at)) for at in starts])
        self._items[item] = _PartialItem(nbytes, places)
        self.ask_more()

    def ask_more(self) -> None:
        """Ask for parts until PARTS_AHEAD are in flight."""
        for item, partial in self._items.items():
            while len(self._parts) < PARTS_AHEAD:
                place = next(partial.places, None)
                if place is None:
                    break
                offset, nbytes = place
                body = {"pack": self._pack, "item": item, "offset": offset, "bytes": nbytes}
                self._parts[self._send(READ, body)] = (item, offset, nbytes)

    def cancel(self, item: str) -> None:
        """Ask for nothing more of an item; its parts in flight will be ignored."""
        self._items.pop(item, None)

    def _send(self, kind: str, body: Body) -> int:
        number = next(self._numbers)
        # If the socket's queue is full, the donor has been gone for long: it will count as silent.
        with suppress(zmq.Again):
            self.socket.send_multipart(
                self._dialect.write(kind, {**body, "id": number}), zmq.NOBLOCK
            )
        return number

    def receive(self) -> Iterator[DonorAnswer]:
        """The answers that are there. Raises ProtocolError if one fits no question."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                self._inbox.emptied()
                if self._inbox.is_over:
                    raise ProtocolError("more than it was asked for") from None
                self._reconnect()  # it drops what was not read
                return
            self._inbox.took(sum(map(len, frames)))
            answer = self._answer([frame.buffer for frame in frames])
            if answer is not None:
                yield answer

    def _answer(self, frames: list[memoryview]) -> DonorAnswer | None:
        if len(frames) != 2 or len(frames[0]) != HEADER.size:
            raise ProtocolError(f"an answer of {len(frames)} frames")
        header = unpack(frames[0])
        if header.kind == Kind.SHARD:
            return self._part(header, frames[1])
        kind, body = self._dialect.read(frames)
        number = Fields(body).integer("id", 0, MAX_ID) if kind in (REPLY, ERROR) else 0
        if kind == REPLY and number == self._offer:
            return read_offer(body)
        if kind == ERROR and number in (self._offer, *self._parts):
            item = self._parts.pop(number, ("", 0, 0))[0]
            self.cancel(item)
            return ItemRefused(item, Fields(body).text("message"))
        return None  # late, or a notification

    def _part(self, header: Header, data: memoryview) -> Part | ItemRefused | None:
        asked = self._parts.pop(header.sequence, None)
        if asked is None:
            return None
        item, offset, nbytes = asked
        if header.shape != (nbytes,) or header.extra != offset or len(data) != nbytes:
            raise ProtocolError(f"{len(data)} bytes of {item} instead of {nbytes}")
        partial, version = self._items.get(item), header.epoch
        if partial is not None and partial.received and partial.version != version:
            self.cancel(item)
            return ItemRefused(item, "it changed while it was sent")
        if partial is None or not partial.add(offset, data, version):
            return Part(item, nbytes)  # cancelled meanwhile, or more is to come
        del self._items[item]
        return Part(item, nbytes, memoryview(partial.buffer), version)

    def _reconnect(self) -> None:
        """Connect again where the connection has ended, unless too much came over it."""
        self._guard.find(self._read_monitor)
        if self._retry_s <= time.monotonic() and not self._inbox.is_over:
            self._retry_s = math.inf
            curve.connect_again(self.socket, self._endpoint)

    def _read_monitor(self) -> None:
        """Also called by the guard's thread: a write may have begun before the connection has."""
        for event, descriptor in curve.events(self._monitor):
            if event == _UP:
                self._guard.watch(self._inbox, descriptor)
            elif event in _DOWN:
                self._retry_s = time.monotonic() + _RETRY_S

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._guard.find(lambda: curve.close_monitored(self.socket, self._monitor))


def read_offer(body: Body) -> Offered:
    """A donor's answer to OFFER. Raises ProtocolError."""
    fields = Fields(body)
    held = None if body.get("held") is None else fields.text("held", _MAX_ITEMS)
    return Offered(
        name=fields.text("name", MAX_ITEM_NAME),
        manifest_bytes=fields.integer("manifest_bytes"),
        items=fields.integer("items", 0, _MAX_ITEMS),
        held=held,
    )
