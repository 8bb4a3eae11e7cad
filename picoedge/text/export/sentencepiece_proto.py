"""Writer of a SentencePiece `tokenizer.model`: the few protobuf fields that a BPE model needs.

Field numbers: `sentencepiece_model.proto` of the SentencePiece project.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_BPE = 2
# Appended to a model file: protobuf keeps the later of two values of a field.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


@dataclass(frozen=True)
class ModelSpec:
    """Settings of a `tokenizer.model` beside its pieces; id -1: no such token."""

    vocab_size: int
    byte_fallback: bool
    add_dummy_prefix: bool
    unk_id: int
    bos_id: int
    eos_id: int


def write_model(file: BinaryIO, pieces: Iterable[tuple[str, float, int]], spec: ModelSpec) -> None:
    """Write pieces (text, score, type) one at a time, then the settings."""
    pack_score = struct.Struct("<f").pack
    for text, score, kind in pieces:
        body = _chunk(1, text.encode()) + b"\x15" + pack_score(score)
        if kind != NORMAL:
            body += _number(3, kind)
        file.write(_chunk(1, body))
    file.write(_chunk(2, _trainer(spec)))
    file.write(_chunk(3, _normalizer(spec)))


def _trainer(spec: ModelSpec) -> bytes:
    return (
        _number(3, _BPE)
        + _number(4, spec.vocab_size)
        + _number(35, spec.byte_fallback)
        + _number(40, spec.unk_id)
        + _number(41, spec.bos_id)
        + _number(42, spec.eos_id)
    )


def _normalizer(spec: ModelSpec) -> bytes:
    identity = _chunk(1, b"identity") + _number(3, spec.add_dummy_prefix)
    return identity + _number(4, False) + _number(5, True)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative: 64-bit two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _chunk(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data
