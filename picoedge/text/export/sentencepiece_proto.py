"""Writer of a SentencePiece `tokenizer.model`: the few protobuf fields that a BPE model needs.

Field numbers: `sentencepiece_model.proto` of the SentencePiece project.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import BinaryIO

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_BPE = 2
# Appended to a model file: protobuf keeps the later of two values of a field.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


def write_model(
    file: BinaryIO,
    pieces: Iterable[tuple[str, float, int]],
    *,
    vocab_size: int,
    byte_fallback: bool,
    add_dummy_prefix: bool,
    unk_id: int,
    bos_id: int,
    eos_id: int,
) -> None:
    """Write pieces (text, score, type) one at a time, then the settings; id -1: no such token."""
    pack_score = struct.Struct("<f").pack
    for text, score, kind in pieces:
        body = _chunk(1, text.encode()) + b"\x15" + pack_score(score)
        if kind != NORMAL:
            body += _numbers({3: kind})
        file.write(_chunk(1, body))
    trainer = {3: _BPE, 4: vocab_size, 35: byte_fallback, 40: unk_id, 41: bos_id, 42: eos_id}
    normalizer = {3: add_dummy_prefix, 4: False, 5: True}
    file.write(_chunk(2, _numbers(trainer)))
    file.write(_chunk(3, _chunk(1, b"identity") + _numbers(normalizer)))


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative: 64-bit two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _numbers(fields: Mapping[int, int]) -> bytes:
    return b"".join(_varint(field << 3) + _varint(value) for field, value in fields.items())


def _chunk(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data
