"""Writer of GGUF files, version 3: key-values, then tensors at aligned offsets.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from picoedge.store.export.floats import FLOAT_BYTES, FloatType

_ALIGNMENT = 32
_TENSOR_TYPES: dict[FloatType, int] = {"f32": 0, "f16": 1}
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """A tensor to be written: its name in the file, its shape (rows first), its type."""

    name: str
    shape: tuple[int, ...]
    dtype: FloatType

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        size = FLOAT_BYTES[self.dtype]
        for length in self.shape:
            size *= length
        return size


def padding(nbytes: int) -> bytes:
    """Zeros that end at the next aligned offset."""
    return bytes(-nbytes % _ALIGNMENT)


def gguf_header(values: Mapping[str, Any], tensors: Sequence[GgufTensor]) -> bytes:
    """Everything before the first tensor's values.

    `values` may be bool, int (unsigned, of 32 bits), float, str, or non-empty lists of one of these
    (int: signed); each tensor's values follow, each with its `padding`.
    """
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(values))]
    for key, value in values.items():
        parts += [_string(key), _value(value)]
    offset = 0
    for tensor in tensors:
        dims = tuple(reversed(tensor.shape))
        parts += [_string(tensor.name), struct.pack(f"<I{len(dims)}Q", len(dims), *dims)]
        parts.append(struct.pack("<IQ", _TENSOR_TYPES[tensor.dtype], offset))
        offset += tensor.nbytes + len(padding(tensor.nbytes))
    header = b"".join(parts)
    return header + padding(len(header))


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Type and value."""
    if isinstance(value, list):
        kind = _INT32 if _kind(value[0]) == _UINT32 else _kind(value[0])
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(
            _bare(each, kind) for each in value
        )
    kind = _kind(value)
    return struct.pack("<I", kind) + _bare(value, kind)


def _kind(value: Any) -> int:
    for python, kind in ((bool, _BOOL), (int, _UINT32), (float, _FLOAT32), (str, _STRING)):
        if isinstance(value, python):
            return kind
    raise TypeError(type(value))


def _bare(value: Any, kind: int) -> bytes:
    if kind == _STRING:
        return _string(value)
    return struct.pack({_BOOL: "<?", _UINT32: "<I", _INT32: "<i", _FLOAT32: "<f"}[kind], value)
