"""A donor: what a board gives to others, item by item. It answers OFFER and READ.

What it gives is behind `ShardProvider`: the files of a pack, or any other named items of bytes.
Nothing that a peer sends becomes a path: names are only looked up. Answers are small parts, read
when they are asked for, so that a daemon of one thread is never busy for long.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from picoedge.errors import ModelError, ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.transport.frames import U32, Header, Kind
from picoedge.mesh.transport.messages import Body, Handler, RawReply
from picoedge.store.shards import HASH, MANIFEST

OFFER, READ = "shards-offer", "shards-read"
PART_BYTES = 128 << 10  # comes whole within a heartbeat, also over a link of 2 Mbit/s
MAX_ITEM_NAME = 200  # characters of an item's name: files of a pack have at most 127


class ShardProvider(Protocol):
    """Named items of bytes. The item MANIFEST describes the others, and is always held."""

    @property
    def identity(self) -> str:
        """The hash under which peers ask for it."""

    @property
    def name(self) -> str:
        """Its name for people."""

    @property
    def names(self) -> Sequence[str]:
        """All items but the manifest, held or not, in an order that every donor has."""

    @property
    def held(self) -> Collection[str] | None:
        """The items that are here; None if all are."""

    def nbytes(self, name: str) -> int | None:
        """Bytes of an item; None if there is none of that name."""

    def read(self, name: str, offset: int, nbytes: int) -> tuple[bytes, int]:
        """That part of an item that is held, and its version: 0 if items never change.

        Raises StorageError if it cannot be read.
        """


class Donor:
    """Answers peers, whose keys the caller has checked."""

    def __init__(self, find: Callable[[str], ShardProvider]) -> None:
        """`find`: the provider of that identity. Raises ModelError if it is not on this board."""
        self._find = find

    def offer(self, body: Body) -> Body:
        """{"pack": identity} -> name, bytes of the manifest, and a bit for each item it lists.

        `held` is base64, the first item the lowest bit; None stands for all. Raises ProtocolError,
        and ModelError if the pack is not here.
        """
        provider = self._find(_identity_of(body))
        names, held = provider.names, provider.held
        return {
            "name": provider.name,
            "manifest_bytes": provider.nbytes(MANIFEST),
            "items": len(names),
            "held": None if held is None else pack_bits([name in held for name in names]),
        }

    def read(self, body: Body) -> tuple[Header, bytes]:
        """{"id", "pack", "item", "offset", "bytes"} -> a part of an item, at most PART_BYTES.

        The header's sequence is the id, its extra the offset, its epoch the part's version. Raises
        ProtocolError, and ModelError or StorageError if the item is not here or cannot be read.
        """
        fields = Fields(body)
        number, offset = fields.integer("id", 0, U32), fields.integer("offset", 0, U32)
        nbytes = fields.integer("bytes", 0, PART_BYTES)
        provider, name = self._find(_identity_of(body)), fields.text("item", MAX_ITEM_NAME)
        size, held = provider.nbytes(name), provider.held
        if size is None:
            raise ProtocolError(f"{provider.name} has no item {name[:80]!r}")
        if held is not None and name not in held and name != MANIFEST:
            raise ModelError(f"{name} of {provider.name} is not on this board")
        if offset + nbytes > size:
            raise ProtocolError(f"{name} has {size} bytes, not {offset + nbytes}")
        data, version = provider.read(name, offset, nbytes)
        return Header(Kind.SHARD, version, number, shape=(nbytes,), extra=offset), data

    def handlers(self) -> dict[str, Handler]:
        """Handlers by kind of message, for `Rpc.on`."""

        def read(peer: str, body: Body) -> RawReply:
            header, data = self.read(body)
            return RawReply(header, data)

        return {OFFER: lambda peer, body: self.offer(body), READ: read}


def pack_bits(bits: list[bool]) -> str:
    """A bit for each, the first the lowest, in base64."""
    data = bytearray(-(-len(bits) // 8))
    for i, bit in enumerate(bits):
        data[i >> 3] |= bit << (i & 7)
    return base64.b64encode(data).decode()


def unpack_bits(text: str, count: int) -> list[bool]:
    """The inverse of `pack_bits` for `count` bits. Raises ProtocolError."""
    size = -(-count // 8)
    try:
        data = base64.b64decode(text, validate=True) if len(text) <= 2 * size + 4 else b""
    except ValueError:
        data = b""
    if len(data) != size:
        raise ProtocolError(f"a list of held items that is not of {count} items")
    return [bool(data[i >> 3] >> (i & 7) & 1) for i in range(count)]


def _identity_of(body: Body) -> str:
    return Fields(body).text("pack", 64, HASH, "the hash of a pack")
