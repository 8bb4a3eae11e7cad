"""A SentencePiece `tokenizer.model`: a writer of the few protobuf fields that a BPE model needs,
and a reader of the settings that the library does not tell.

Field numbers: `sentencepiece_model.proto` of the SentencePiece project.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from picoedge.errors import TextError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_UNIGRAM, _BPE = 1, 2
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


@dataclass(frozen=True)
class ModelRules:
    """A model's normalization of texts. `charsmap`: its compiled table of characters; empty: none.

    `merges_spaces`: runs of spaces become one, and those at the ends nothing.
    """

    is_bpe: bool
    charsmap: bytes
    merges_spaces: bool


def read_rules(data: bytes) -> ModelRules:
    """The rules of a model file. Raises TextError where it is damaged or of another kind."""
    try:
        kind, charsmap, merges_spaces = _UNIGRAM, b"", True
        for field, value in _fields(data):
            if field == 2 and isinstance(value, bytes):
                kind = next((v for f, v in _fields(value) if f == 3 and isinstance(v, int)), kind)
            elif field == 3 and isinstance(value, bytes):
                for inner, setting in _fields(value):  # a later one counts
                    if inner == 2 and isinstance(setting, bytes):
                        charsmap = setting
                    elif inner == 4:
                        merges_spaces = bool(setting)
    except (IndexError, ValueError) as error:
        raise TextError("the SentencePiece model is damaged", "pack the model again") from error
    if kind not in (_UNIGRAM, _BPE):
        raise TextError(
            "the tokenizer is a SentencePiece model of whole words or characters",
            "supported: BPE and unigram models",
        )
    return ModelRules(kind == _BPE, charsmap, merges_spaces)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a message's fields: integers, or bytes of any other kind."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        wire, length = tag & 7, {1: 8, 5: 4}.get(tag & 7, 0)
        if wire == 0:
            value, at = _read_varint(data, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            length, at = _read_varint(data, at)
        elif not length:
            raise ValueError(f"a field of wire type {wire}")
        if at + length > len(data):
            raise ValueError("a field beyond the end")
        yield tag >> 3, data[at : at + length]
        at += length


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number without end")


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
