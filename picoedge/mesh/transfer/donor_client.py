"""The client of one donor: asks its daemon for offers and parts of items, over one socket."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import zmq

from picoedge.errors import ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.transfer.donor import MAX_ITEM_NAME, OFFER, PART_BYTES, READ, unpack_bits
from picoedge.mesh.transport import curve
from picoedge.mesh.transport.frames import HEADER, Header, Kind, unpack
from picoedge.mesh.transport.messages import ERROR, MAX_ID, REPLY, Body, Dialect

if TYPE_CHECKING:
    from picoedge.mesh.addresses import Address
    from picoedge.mesh.identity.identity import KeyPair
    from picoedge.mesh.transport.curve import Context, Socket

_MAX_ITEMS = 1 << 20  # above any pack: 100 layers of 1000 shards


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
    """Bytes of an item, as many as were asked for; `version` is 0 if items never change."""

    item: str
    offset: int
    data: memoryview
    version: int = 0


@dataclass(frozen=True)
class Refused:
    """A donor cannot give an item; "" is the whole pack."""

    item: str
    reason: str


DonorAnswer = Offered | Part | Refused


class DonorHandle(Protocol):
    """A donor that can be asked. No method waits."""

    @property
    def socket(self) -> Socket:
        """Readable when answers may be there."""

    def offer(self, pack: str) -> None:
        """Ask which items of a pack it has; an earlier question is forgotten."""

    def ask(self, pack: str, item: str, offset: int, nbytes: int) -> None:
        """Ask for a part of an item, of at most PART_BYTES."""

    def forget(self) -> None:
        """Ignore the answers to all earlier questions."""

    def receive(self) -> Iterator[DonorAnswer]:
        """The answers that are there. Raises ProtocolError if one fits no question."""


class DonorClient:
    """A `DonorHandle` over a socket of its own to a board's daemon. Close it."""

    def __init__(self, context: Context, keys: KeyPair, address: Address, server_key: str) -> None:
        """`server_key`: the board's public key in Z85."""
        self.socket: Socket = context.socket(zmq.DEALER)
        curve.configure_client(self.socket, keys, server_key, curve.SocketBounds())
        self.socket.connect(address.endpoint)
        self._dialect = Dialect()
        self._numbers = itertools.count(1)
        self._offer = 0  # id of the latest offer asked for
        self._parts: dict[int, tuple[str, int, int]] = {}  # id -> item, offset, bytes

    def offer(self, pack: str) -> None:
        """See `DonorHandle.offer`."""
        self._offer = self._send(OFFER, {"pack": pack})

    def ask(self, pack: str, item: str, offset: int, nbytes: int) -> None:
        """See `DonorHandle.ask`."""
        assert nbytes <= PART_BYTES
        place = {"pack": pack, "item": item, "offset": offset, "bytes": nbytes}
        self._parts[self._send(READ, place)] = (item, offset, nbytes)

    def _send(self, kind: str, body: Body) -> int:
        number = next(self._numbers)
        # If the socket's queue is full, the donor has been gone for long: it will count as silent.
        with suppress(zmq.Again):
            self.socket.send_multipart(
                self._dialect.write(kind, {**body, "id": number}), zmq.NOBLOCK
            )
        return number

    def forget(self) -> None:
        """See `DonorHandle.forget`."""
        self._parts.clear()
        self._offer = 0

    def receive(self) -> Iterator[DonorAnswer]:
        """See `DonorHandle.receive`."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
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
            return Refused(item, Fields(body).text("message"))
        return None  # late, or a notification

    def _part(self, header: Header, data: memoryview) -> Part | None:
        asked = self._parts.pop(header.sequence, None)
        if asked is None:
            return None
        item, offset, nbytes = asked
        if header.shape != (nbytes,) or header.extra != offset or len(data) != nbytes:
            raise ProtocolError(f"{len(data)} bytes of {item} instead of {nbytes}")
        return Part(item, offset, data, header.epoch)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.socket.close(linger=0)


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
