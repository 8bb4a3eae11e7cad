"""GGUF files, written value by value, so that each can be wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, TEXT, ARRAY, U64, I64, F64 = range(13)
FORMS = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "B",
    U64: "Q",
    I64: "q",
    F64: "d",
}
ALIGNMENT = 32


@dataclass(frozen=True)
class Value:
    """A key's value: its type, for arrays the type of the items, and its bytes."""

    kind: int
    value: Any
    item: int = 0
    count: int = -1  # as claimed; -1: as many as there are


@dataclass(frozen=True)
class TensorRow:
    """A row of the tensor table; its data are zeros."""

    name: str
    shape: tuple[int, ...]  # rows first
    kind: int = 0  # F32
    offset: int = 0


@dataclass(frozen=True)
class Gguf:
    """A whole file."""

    keys: tuple[tuple[str, Value], ...]
    tensors: tuple[TensorRow, ...]
    version: int = 3

    def to_bytes(self) -> bytes:
        """The file."""
        head = [b"GGUF", struct.pack("<IQQ", self.version, len(self.tensors), len(self.keys))]
        for key, value in self.keys:
            head += [_text(key), struct.pack("<I", value.kind & 0xFFFFFFFF), _value(value)]
        for row in self.tensors:
            dims = [size & 0xFFFFFFFFFFFFFFFF for size in reversed(row.shape)]
            head.append(
                _text(row.name)
                + struct.pack("<I", len(dims))
                + struct.pack(f"<{len(dims)}Q", *dims)
            )
            head.append(struct.pack("<IQ", row.kind & 0xFFFFFFFF, row.offset & 0xFFFFFFFFFFFFFFFF))
        data = b"".join(head)
        data += bytes(-len(data) % ALIGNMENT)
        end = max((t.offset + row_bytes(t) for t in self.tensors), default=0)
        return data + b"\x01\x3c" * (min(max(end, 0), 1 << 18) // 2)


def row_bytes(row: TensorRow) -> int:
    total = 4
    for size in row.shape:
        total *= size
    return total


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if value.kind == ARRAY:
        items = value.value if isinstance(value.value, (list, tuple)) else [value.value]
        count = len(items) if value.count < 0 else value.count
        head = struct.pack("<IQ", value.item & 0xFFFFFFFF, count & 0xFFFFFFFFFFFFFFFF)
        return head + b"".join(_scalar(value.item, item) for item in items)
    return _scalar(value.kind, value.value)


def _scalar(kind: int, value: Any) -> bytes:
    if kind == TEXT:
        return _text(str(value))
    form = FORMS.get(kind, "I")
    if form in "fd":
        try:
            return struct.pack(f"<{form}", float(value))
        except (OverflowError, TypeError, ValueError):
            return struct.pack(f"<{form}", float("nan"))
    number = int(value) if isinstance(value, (int, float)) and abs(value) < 1e30 else 0
    width = struct.calcsize(form)
    return (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")
