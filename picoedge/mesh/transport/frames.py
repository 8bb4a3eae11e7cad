"""What passes between boards, byte by byte: a header of fixed size, then one raw buffer or JSON.

    magic b"PE", version u8, kind u8, epoch u32, sequence u32, dtype u8, dimensions u8,
    shape 3 x u32, extra u32                                              little-endian, 30 bytes

Nothing here is believed before it is checked, and nothing is allocated because a header says so.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from picoedge.errors import ProtocolError

HEADER = struct.Struct("<2sBBIIBB3II")
MAGIC = b"PE"
VERSION = 1
DIMENSIONS = 3
U32 = (1 << 32) - 1
# A message of a session is a header, filled up so that the numbers behind it are aligned, and the
# buffer.
PREFIX_BYTES = 32
PADDING = bytes(PREFIX_BYTES - HEADER.size)
HUB = 0  # the rank of the board where the text was typed

CONTROL_BYTES = 1 << 20
CONTROL_DEPTH = 16  # objects and arrays inside each other
NUMBER_DIGITS = 24
KIND_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")

Json = dict[str, Any]


class Kind(IntEnum):
    """What a message is."""

    CONTROL = 1  # JSON
    INPUT = 2  # rows a forward pass begins with, from the hub; extra: position of the first one
    SUM_PART = 3  # what one board adds to a sum; extra: its first value
    SUM = 4  # a whole sum, from whoever added it; extra: its first value
    SHARD = 5  # a piece of a shard
    BYE = 6  # the session is over
    HELLO = 7  # the first message either way over a link; extra: the sender's rank
    INPUT_LAST = 8  # as INPUT, and logits of its last row are wanted
    INPUT_ALL = 9  # as INPUT, and logits of all its rows are wanted
    LOGITS = 10  # some of a row's, to the hub; extra: the row's first value, and the first of these


class Dtype(IntEnum):
    """What a buffer holds."""

    BYTES = 0
    F64 = 1  # of a part: as in trimmed.py
    F32 = 2
    F16 = 3
    Q8 = 4  # f32 scales of blocks of 32, then int8


KINDS = {int(kind): kind for kind in Kind}
DTYPES = {int(dtype): dtype for dtype in Dtype}


@dataclass(frozen=True)
class Header:
    """What is said of the buffer behind it: `shape` is that of the whole array, at most 3 long."""

    kind: Kind
    epoch: int = 0
    sequence: int = 0
    dtype: Dtype = Dtype.BYTES
    shape: tuple[int, ...] = ()
    extra: int = 0

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape)) or "nothing"
        return (
            f"{self.kind.name} {self.sequence} of {shape} {self.dtype.name}"
            f" at {self.extra}, epoch {self.epoch}"
        )


@dataclass(frozen=True)
class Bounds:
    """The largest array a header may speak of: elements of each dimension, and of all."""

    side: int = U32
    elements: int = 1 << 40


ANY = Bounds()


def pack(header: Header) -> bytes:
    """The 30 bytes of a header. It is our own, so its fields are in range."""
    missing = DIMENSIONS - len(header.shape)
    return HEADER.pack(
        MAGIC,
        VERSION,
        header.kind,
        header.epoch,
        header.sequence,
        header.dtype,
        len(header.shape),
        *header.shape,
        *(0,) * missing,
        header.extra,
    )


def unpack(frame: bytes | memoryview, bounds: Bounds = ANY) -> Header:
    """The header that a frame holds, and nothing else. Raises ProtocolError."""
    if len(frame) != HEADER.size:
        raise ProtocolError(f"a header of {len(frame)} bytes instead of {HEADER.size}")
    magic, version, kind, epoch, sequence, dtype, ndim, *rest = HEADER.unpack(frame)
    if magic != MAGIC:
        raise ProtocolError("a message that is not picoedge's")
    if version != VERSION:
        raise ProtocolError(
            f"a message of version {version}, this is version {VERSION}",
            "run the same picoedge on all boards",
        )
    if kind not in KINDS or dtype not in DTYPES or ndim > DIMENSIONS:
        raise ProtocolError(f"a header of unknown kind {kind}, dtype {dtype}, {ndim} dimensions")
    shape, unused = tuple(rest[:ndim]), rest[ndim:DIMENSIONS]
    if any(unused) or max(shape, default=0) > bounds.side or math.prod(shape) > bounds.elements:
        raise ProtocolError(f"a header with a shape out of bounds: {rest[:DIMENSIONS]}")
    return Header(KINDS[kind], epoch, sequence, DTYPES[dtype], shape, rest[DIMENSIONS])


# -- control messages ------------------------------------------------------------------------------


def control(kind: str, body: Json) -> list[bytes]:
    """The two frames of a control message. Raises ProtocolError where they would be too large."""
    assert KIND_NAME.fullmatch(kind), kind
    message = {"kind": kind, "body": body}
    raw = json.dumps(message, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    if len(raw) > CONTROL_BYTES:
        raise ProtocolError(f"a {kind!r} message of {len(raw)} bytes: the limit is {CONTROL_BYTES}")
    return [CONTROL_HEADER, raw]


CONTROL_HEADER = pack(Header(Kind.CONTROL))


def read_control(frames: Sequence[bytes | memoryview]) -> tuple[str, Json]:
    """Kind and body of a control message. Raises ProtocolError."""
    if len(frames) != 2:
        raise ProtocolError(f"a control message of {len(frames)} frames instead of 2")
    if unpack(frames[0]) != Header(Kind.CONTROL):
        raise ProtocolError("a control message with another header")
    if len(frames[1]) > CONTROL_BYTES:
        raise ProtocolError(f"a control message of {len(frames[1])} bytes")
    message = _parse(bytes(frames[1]))
    if not isinstance(message, dict) or set(message) != {"kind", "body"}:
        raise ProtocolError("a control message that is not a kind and a body")
    kind, body = message["kind"], message["body"]
    if not isinstance(kind, str) or not KIND_NAME.fullmatch(kind) or not isinstance(body, dict):
        raise ProtocolError("a control message that is not a kind and a body")
    return kind, body


def _parse(raw: bytes) -> Any:
    try:
        value = _DECODER.decode(raw.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one, JSONDecodeError too
        raise ProtocolError(f"a control message that is not JSON: {str(error)[:80]}") from None
    _check_text_and_depth(value)
    return value


def _check_text_and_depth(value: Any) -> None:
    """Raise ProtocolError where values nest deeper than anyone needs, or text is no Unicode."""
    level = [value]
    for _ in range(CONTROL_DEPTH):
        for text in level:
            if isinstance(text, str) and not _is_unicode(text):
                raise ProtocolError("a control message with half a character in it")
        level = [item for held in level for item in _items(held)]
        if not level:
            return
    raise ProtocolError(f"a control message nested deeper than {CONTROL_DEPTH}")


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can write and nobody can print."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > NUMBER_DIGITS:
        raise ValueError("a number too long")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number too large")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_int=_integer,
    parse_float=_finite,
    parse_constant=_refuse_constant,
)
