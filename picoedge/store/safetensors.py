"""Safetensors files: headers, checked against the file, and small files written whole.

Format: https://github.com/huggingface/safetensors, section Format. Headers are read here, because
the safetensors library maps a file before it checks the header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from picoedge.errors import ModelError, UnsupportedError
from picoedge.fields import Fields
from picoedge.files import parse_object, read_at, reading
from picoedge.kernels.arrays import F32
from picoedge.store.encodings import ENCODINGS

FLOAT_TYPES = ("F32", "F16", "BF16")
LFS_POINTER = (
    b"version https://git-lfs",
    "a Git LFS pointer, not the file itself",
    "run git lfs pull in its folder, or download the file",
)  # first bytes, what it is, the remedy
_DAMAGED = "the file is truncated or damaged: get it again"
# MOST_VALUES are 16,384 tensors: each is an object with 2 lists, and has some 5 commas. The largest
# model read here has 1,138, and 4 parts of each where quantized. Headers of so many have 2 MB.
_MAX_HEADER = 1 << 22
_MAX_DIMS = 8
_ALIGNED = 8  # bytes: the format's own rule for the end of a header


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: its dtype as the file spells it, its offset from the file's start."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> list[TensorEntry]:
    """Every tensor of a file, of any dtype. Raises ModelError where header and file disagree."""
    with reading(path):
        size = path.stat().st_size
    length = int.from_bytes(read_at(path, 0, 8), "little") if size >= 8 else size
    if length > size - 8:
        magic, what, remedy = LFS_POINTER
        if size >= len(magic) and read_at(path, 0, len(magic)) == magic:
            raise ModelError(f"{path} is {what}", remedy)
        raise ModelError(f"{path}: its header claims {length} bytes, the file has {size}", _DAMAGED)
    if length > _MAX_HEADER:
        raise ModelError(
            f"{path}: its header has {length} bytes, at most {_MAX_HEADER} are expected", _DAMAGED
        )
    fields = parse_object(read_at(path, 8, length), path, _DAMAGED)
    names = [name for name in fields.values if name != "__metadata__"]
    return [_entry(path, fields, name, 8 + length, size) for name in names]


def _entry(path: Path, fields: Fields, name: str, data_start: int, size: int) -> TensorEntry:
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
            _DAMAGED,
        )
    start, end = (data_start + offset for offset in offsets)
    return TensorEntry(path, name, entry.get("dtype", str), tuple(shape), start, end - start)


def require_floats(entry: TensorEntry) -> None:
    """Raises UnsupportedError for a dtype that is no float, ModelError for a wrong size."""
    if entry.dtype not in FLOAT_TYPES:
        raise UnsupportedError(
            f"{entry.path}: tensor {entry.name[:200]} has dtype {entry.dtype[:32]}, which is not "
            "supported",
            f"supported: {', '.join(FLOAT_TYPES)}",
        )
    if math.prod(entry.shape) * ENCODINGS[entry.dtype].nbytes != entry.nbytes:
        raise ModelError(
            f"{entry.path}: tensor {entry.name[:200]} has {entry.nbytes} bytes for {entry.shape}",
            _DAMAGED,
        )


def read_matrix(entry: TensorEntry) -> F32:
    """The values of a matrix of floats, f32 [rows, cols].

    Raises ModelError where it is no matrix, where its size is wrong, and on NaN or infinity;
    UnsupportedError where it does not hold floats.
    """
    require_floats(entry)
    if len(entry.shape) != 2 or not entry.nbytes:
        raise ModelError(
            f"{entry.path}: tensor {entry.name[:200]} has shape {entry.shape}, a matrix is needed",
            _DAMAGED,
        )
    raw = np.frombuffer(read_at(entry.path, entry.offset, entry.nbytes), np.uint8)
    values = ENCODINGS[entry.dtype].floats(raw.reshape(entry.shape[0], -1))
    if not np.isfinite(values).all():
        raise ModelError(
            f"{entry.path}: tensor {entry.name[:200]} holds NaN or infinity",
            "the file is damaged: get it again",
        )
    return values


def safetensors_parts(tensors: Mapping[str, F32]) -> Sequence[bytes | memoryview]:
    """The bytes of a safetensors file of f32 tensors, in parts, as libraries for PyTorch read it.

    The parts after the first are views of the tensors' own memory where that is contiguous.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    parts, at = list[bytes | memoryview](), 0
    for name, values in tensors.items():
        data = np.ascontiguousarray(values, np.dtype("<f4"))
        end = at + data.nbytes
        header[name] = {"dtype": "F32", "shape": list(data.shape), "data_offsets": [at, end]}
        parts.append(memoryview(data).cast("B"))
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return [len(text).to_bytes(8, "little") + text, *parts]
