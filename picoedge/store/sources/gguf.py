"""GGUF header reader: streaming, so that large vocabularies take little memory.

Format: the ggml project's `docs/gguf.md`, versions 2 and 3, little endian. Every count and offset
is checked against the size of the file before it is used.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.errors import ModelError, UnsupportedError
from picoedge.files import read_at, reading
from picoedge.store.encodings import ggml_encoding
from picoedge.store.sources.refusals import not_a_gguf, refuse_other_kinds
from picoedge.store.sources.tensors import SourceTensor

_WINDOW = 1 << 20
# Bounds of a header, each several times what the largest published models have.
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_STRING = 1 << 24
_MAX_NAME = 1 << 12
_MAX_ITEMS = 1 << 22
_MAX_HEADER = 1 << 28
_MAX_DIMS = 4
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_PART = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")


class _Cursor:
    """Buffered forward reader of a file. Raises ModelError where the file ends too early."""

    def __init__(self, path: Path, position: int = 0) -> None:
        self.path = path
        with reading(path):
            self.size = path.stat().st_size
        self._base, self._at, self._buffer = position, 0, b""

    @property
    def position(self) -> int:
        return self._base + self._at

    def damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: {what}", "the file is truncated or damaged: get it again")

    def _fill(self, n: int) -> None:
        position = self.position
        if position + n > self.size:
            raise self.damaged(f"ends at byte {self.size}, within its header")
        length = min(max(n, _WINDOW), self.size - position)
        self._buffer = bytes(read_at(self.path, position, length))
        self._base, self._at = position, 0

    def take(self, n: int) -> bytes:
        if self._at + n > len(self._buffer):
            self._fill(n)
        self._at += n
        return self._buffer[self._at - n : self._at]

    def skip(self, n: int) -> None:
        if self.position + n > self.size:
            raise self.damaged(f"ends at byte {self.size}, within its header")
        self._at += n

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def count(self, limit: int, what: str) -> int:
        value = self.u64()
        if value > min(limit, self.size):
            raise self.damaged(f"claims {value} {what}")
        return value

    def text(self, limit: int = _MAX_STRING) -> str:
        return self.take(self.count(limit, "bytes of text")).decode("utf-8", "replace")

    def skip_texts(self, count: int) -> None:
        # Local names: the loop runs over hundreds of thousands of tokens.
        unpack, buffer, at = _U64.unpack_from, self._buffer, self._at
        for _ in range(count):
            if at + 8 > len(buffer):
                self._at = at
                self._fill(8)
                buffer, at = self._buffer, 0
            at += 8 + unpack(buffer, at)[0]
        self._at = at
        self.skip(0)


class Metadata(Mapping[str, Any]):
    """Key-values of a GGUF, read from the file on access; arrays are lists."""

    def __init__(self, path: Path, places: dict[str, tuple[int, int]]) -> None:
        self._path = path
        self._places = places  # key -> (type, byte of the value)

    def __getitem__(self, key: str) -> Any:
        kind, position = self._places[key]
        return _read_value(_Cursor(self._path, position), kind)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _read_value(cursor: _Cursor, kind: int) -> Any:
    if kind == _STRING:
        return cursor.text()
    if kind != _ARRAY:
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(cursor.take(dtype.itemsize), dtype)[0].item()
    item, count = _array_head(cursor)
    if item == _STRING:
        return [cursor.text() for _ in range(count)]
    dtype = np.dtype(_SCALARS[item])
    return np.frombuffer(cursor.take(count * dtype.itemsize), dtype).tolist()


def _array_head(cursor: _Cursor) -> tuple[int, int]:
    item = cursor.u32()
    if item != _STRING and item not in _SCALARS:
        raise cursor.damaged(f"holds an array of items of type {item}")
    return item, cursor.count(_MAX_ITEMS, "items in an array")


def _skip_value(cursor: _Cursor, key: str) -> int:
    """Skip one value and return its type."""
    kind = cursor.u32()
    if kind == _STRING:
        cursor.skip(cursor.count(_MAX_STRING, "bytes of text"))
    elif kind == _ARRAY:
        item, count = _array_head(cursor)
        if item == _STRING:
            cursor.skip_texts(count)
        else:
            cursor.skip(count * np.dtype(_SCALARS[item]).itemsize)
    elif kind in _SCALARS:
        cursor.skip(np.dtype(_SCALARS[kind]).itemsize)
    else:
        raise cursor.damaged(f"gives {key} the unknown type {kind}")
    return kind


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, or all parts of a split one."""

    paths: tuple[Path, ...]
    metadata: Metadata
    tensors: dict[str, SourceTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the headers of a file, or of all parts of a split one.

    Raises ModelError where a part is missing or damaged, UnsupportedError on an unsupported
    version, byte order or tensor type.
    """
    paths = _parts(path)
    heads = [_read_part(part) for part in paths]
    tensors: dict[str, SourceTensor] = {}
    for part, (_, table) in zip(paths, heads, strict=True):
        for tensor in table:
            if tensor.name in tensors:
                raise ModelError(f"{part}: tensor {tensor.name} is there twice", "get it again")
            tensors[tensor.name] = tensor
    return GgufFile(paths, heads[0][0], tensors)


def _parts(path: Path) -> tuple[Path, ...]:
    match = _PART.match(path.name)
    if match is None:
        return (path,)
    own, count = int(match[2]), int(match[3])
    if not 1 <= own <= count:
        raise ModelError(f"{path} is part {own} of {count}", "give the file its own name back")
    paths = tuple(
        path.with_name(f"{match[1]}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)
    )
    missing = [p.name for p in paths if not p.is_file()]
    if missing:
        raise ModelError(
            f"{path.parent}: {len(missing)} of {count} parts are missing: {missing[0]} …",
            "put all parts of the model into one folder",
        )
    return paths


def _read_part(path: Path) -> tuple[Metadata, list[SourceTensor]]:
    cursor = _Cursor(path)
    _check_version(cursor)
    n_tensors = cursor.count(_MAX_TENSORS, "tensors")
    n_keys = cursor.count(_MAX_KEYS, "keys")
    places: dict[str, tuple[int, int]] = {}
    for _ in range(n_keys):
        key = cursor.text(_MAX_NAME)
        position = cursor.position + 4
        kind = _skip_value(cursor, key)
        if cursor.position > _MAX_HEADER:
            raise cursor.damaged(f"claims a header of more than {_MAX_HEADER} bytes")
        if key in places:
            raise cursor.damaged(f"gives {key} twice")
        places[key] = (kind, position)
    metadata = Metadata(path, places)
    refuse_other_kinds(metadata, path)
    return metadata, _read_table(cursor, n_tensors, metadata)


def _check_version(cursor: _Cursor) -> None:
    if cursor.size < 4 or cursor.take(4) != b"GGUF":
        with reading(cursor.path):
            head = bytes(read_at(cursor.path, 0, min(cursor.size, 64)))
        raise not_a_gguf(cursor.path, head)
    version = cursor.u32()
    if version in (2, 3):
        return
    what = "is big-endian" if version and version % 65536 == 0 else f"has GGUF version {version}"
    raise UnsupportedError(
        f"{cursor.path} {what}", "supported: little-endian GGUF of versions 2 and 3"
    )


def _read_table(cursor: _Cursor, count: int, metadata: Metadata) -> list[SourceTensor]:
    tensors = [_read_row(cursor) for _ in range(count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= _WINDOW or alignment % 8:
        raise cursor.damaged(f"has an alignment of {alignment}")
    start = -(-cursor.position // alignment) * alignment
    for tensor in tensors:
        end = start + tensor.offset + tensor.nbytes
        if tensor.offset % alignment:
            raise cursor.damaged(
                f"tensor {tensor.name} starts at byte {tensor.offset}, "
                f"not at a multiple of {alignment}"
            )
        if end > cursor.size:
            raise cursor.damaged(
                f"tensor {tensor.name} would end at byte {end}, the file at {cursor.size}"
            )
    return [replace(tensor, offset=start + tensor.offset) for tensor in tensors]


def _read_row(cursor: _Cursor) -> SourceTensor:
    """A row of the tensor table; its offset is from the start of the data."""
    name = cursor.text(_MAX_NAME)
    n_dims = cursor.u32()
    if not 1 <= n_dims <= _MAX_DIMS:
        raise cursor.damaged(f"gives tensor {name} {n_dims} dimensions")
    shape = tuple(cursor.u64() for _ in range(n_dims))[::-1]
    if min(shape) < 1 or math.prod(shape) > 1 << 42:
        raise cursor.damaged(f"gives tensor {name} the shape {shape}")
    encoding = ggml_encoding(cursor.u32(), name)
    if shape[-1] % encoding.elements:
        raise cursor.damaged(
            f"tensor {name} has rows of {shape[-1]}, {encoding.name} needs "
            f"multiples of {encoding.elements}"
        )
    nbytes = math.prod(shape[:-1]) * encoding.row_bytes(shape[-1])
    return SourceTensor(name, shape, encoding, cursor.path, cursor.u64(), nbytes)
