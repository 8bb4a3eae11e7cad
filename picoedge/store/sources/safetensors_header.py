"""safetensors header reader (https://github.com/huggingface/safetensors, section Format).

The safetensors library maps a file before it checks the header; this module checks first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from picoedge.errors import ModelError, UnsupportedError
from picoedge.fields import Fields
from picoedge.store.files import parse_object, read_at, reading
from picoedge.store.sources.encodings import ENCODINGS
from picoedge.store.sources.tensors import StoredTensor

_MAX_HEADER = 1 << 25
_MAX_DIMS = 8
_REMEDY = "the file is truncated or damaged: get it again"
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class RawTensor:
    """One entry of a header: a byte range inside the file, its dtype not yet checked."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int  # from the start of the file
    nbytes: int

    def stored(self) -> StoredTensor:
        """The readable tensor. Raises UnsupportedError on a dtype, ModelError on a wrong size."""
        if self.dtype not in _FLOATS:
            raise UnsupportedError(
                f"{self.path}: tensor {self.name} has dtype {self.dtype}, which is not supported",
                f"supported: {', '.join(_FLOATS)}",
            )
        encoding = ENCODINGS[self.dtype]
        if math.prod(self.shape) * encoding.nbytes != self.nbytes:
            raise ModelError(
                f"{self.path}: tensor {self.name} has {self.nbytes} bytes for {self.shape}", _REMEDY
            )
        return StoredTensor(self.name, self.shape, encoding, self.path, self.offset, self.nbytes)


def read_header(path: Path) -> list[RawTensor]:
    """Every tensor of a file. Raises ModelError where header and file do not agree."""
    with reading(path):
        size = path.stat().st_size
    length = int.from_bytes(read_at(path, 0, 8).tobytes(), "little") if size >= 8 else size
    if length > min(_MAX_HEADER, size - 8):
        raise ModelError(f"{path}: its header claims {length} bytes, the file has {size}", _REMEDY)
    fields = parse_object(read_at(path, 8, length).tobytes(), path, _REMEDY)
    names = [name for name in fields.values if name != "__metadata__"]
    return [_entry(path, fields, name, 8 + length, size) for name in names]


def _entry(path: Path, fields: Fields, name: str, data_start: int, size: int) -> RawTensor:
    entry = fields.object(name)
    shape, offsets = entry.get("shape", list), entry.get("data_offsets", list)
    if not all(type(n) is int and n >= 0 for n in (*shape, *offsets)) or len(shape) > _MAX_DIMS:
        raise fields.fault(name)
    if len(offsets) != 2 or not offsets[0] <= offsets[1]:
        raise fields.fault(name)
    if data_start + offsets[1] > size:
        raise ModelError(
            f"{path}: tensor {name} would end at byte {data_start + offsets[1]}, "
            f"the file at {size}",
            _REMEDY,
        )
    return RawTensor(
        name, entry.get("dtype", str), tuple(shape), path,
        data_start + offsets[0], offsets[1] - offsets[0],
    )  # fmt: skip
