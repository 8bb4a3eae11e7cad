"""Frames between boards, byte by byte: a header of fixed size, then one raw buffer or JSON.

    magic b"PE", version u8, kind u8, epoch u32, sequence u32, dtype u8, dimensions u8,
    shape 3 x u32, extra u32                                              little-endian, 30 bytes
    tag u8, zero u8      where the buffer follows in the same message: 32 bytes, so it is aligned

Nothing here is believed before it is checked, and nothing is allocated because a header says so.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from picoedge.errors import ProtocolError

HEADER = struct.Struct("<2sBBIIBB3II")
TAGGED_HEADER = struct.Struct("<2sBBIIBB3IIBx")  # a header, a tag, a zero
PREFIX_BYTES = TAGGED_HEADER.size
MAGIC = b"PE"
VERSION = 2  # of the frames and of the messages
SPOKEN = (1, 2)  # a cluster is upgraded board by board
V1_TAGS = (2, 8, 9, 10)  # version 1 had no tags: these were kinds of their own
DIMENSIONS = 3  # the header's lengths of an array; ours have two at most
U32 = (1 << 32) - 1  # the largest number that a field of the header holds
HUB = 0  # the rank of the board where the text was typed


class Kind(IntEnum):
    """Kinds of messages."""

    CONTROL = 1  # JSON
    SUM_PART = 3  # what one rank adds to a sum; extra: its first value
    SUM = 4  # a whole sum; extra: its first value
    SHARD = 5  # a part of a shard
    BYE = 6  # the group ends
    HELLO = 7  # the first message either way over a link; extra: the sender's rank
    DATA = 11  # an array that is no sum; the group's program defines tag and extra


class Dtype(IntEnum):
    """Encodings of a buffer's values: see `mesh/group/codecs.py`."""

    BYTES = 0
    F64 = 1  # 8 or 6 bytes a value
    F32 = 2
    F16 = 3
    Q8 = 4  # f32 scales of blocks of 32, then int8


KINDS = {
    1: {
        **{int(kind): kind for kind in Kind if kind is not Kind.DATA},
        **dict.fromkeys(V1_TAGS, Kind.DATA),
    },
    2: {int(kind): kind for kind in Kind},
}
DTYPES = {int(dtype): dtype for dtype in Dtype}


@dataclass(frozen=True)
class Header:
    """Describes the buffer behind it: `shape` is that of the whole array, at most 3 long."""

    kind: Kind
    epoch: int = 0
    sequence: int = 0
    dtype: Dtype = Dtype.BYTES
    shape: tuple[int, ...] = ()
    extra: int = 0
    tag: int = 0

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape)) or "nothing"
        tag = f" {self.tag}:" if self.tag else ""
        return (
            f"{self.kind.name}{tag} {self.sequence} of {shape} {self.dtype.name}"
            f" at {self.extra}, epoch {self.epoch}"
        )


@dataclass(frozen=True)
class ShapeBounds:
    """The largest array a header may describe: elements of each dimension, and of all."""

    side: int = U32
    elements: int = 1 << 40


ANY = ShapeBounds()


def pack(header: Header, version: int = VERSION) -> bytes:
    """The 30 bytes of a header without a tag. It is our own, so its fields are in range."""
    assert not header.tag
    return pack_prefix(header, version)[: HEADER.size]


def pack_prefix(header: Header, version: int = VERSION) -> bytes:
    """The 32 bytes in front of a buffer: a header and its tag."""
    kind, tag = int(header.kind), header.tag
    if version == 1 and header.kind is Kind.DATA:
        assert tag in V1_TAGS
        kind, tag = tag, 0
    what = header.epoch, header.sequence, header.dtype, len(header.shape)
    shape = header.shape + (0,) * (DIMENSIONS - len(header.shape))
    return TAGGED_HEADER.pack(MAGIC, version, kind, *what, *shape, header.extra, tag)


def unpack(
    frame: bytes | bytearray | memoryview,
    bounds: ShapeBounds = ANY,
    versions: Collection[int] = SPOKEN,
) -> Header:
    """The header in a frame of 30 or, with a tag, 32 bytes. Raises ProtocolError."""
    if len(frame) not in (HEADER.size, PREFIX_BYTES):
        raise ProtocolError(f"a header of {len(frame)} bytes instead of {HEADER.size}")
    magic, version, kind, epoch, sequence, dtype, ndim, *rest = HEADER.unpack(frame[: HEADER.size])
    if magic != MAGIC:
        raise ProtocolError("a message that is not picoedge's")
    if version not in versions:
        raise ProtocolError(
            f"a message of version {version}, this board speaks {' and '.join(map(str, versions))}",
            "run the same picoedge on all boards",
        )
    kinds = KINDS[version]
    if kind not in kinds or dtype not in DTYPES or ndim > DIMENSIONS:
        raise ProtocolError(f"a header of unknown kind {kind}, dtype {dtype}, {ndim} dimensions")
    shape, unused = tuple(rest[:ndim]), rest[ndim:DIMENSIONS]
    if any(unused) or max(shape, default=0) > bounds.side or math.prod(shape) > bounds.elements:
        raise ProtocolError(f"a header with a shape out of bounds: {rest[:DIMENSIONS]}")
    tag, zero = frame[HEADER.size :] or (0, 0)
    if zero or (tag and (version == 1 or kind != Kind.DATA)):
        raise ProtocolError(f"a header of kind {kind} with tag {tag}")
    if version == 1 and kind in V1_TAGS:
        tag = kind
    return Header(kinds[kind], epoch, sequence, DTYPES[dtype], shape, rest[DIMENSIONS], tag)
