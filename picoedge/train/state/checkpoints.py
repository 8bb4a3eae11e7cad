"""Checkpoints: all that a run needs to go on to the same bits, in one safetensors file each.

    CHECKPOINTS/step-00000412.safetensors

A file is written beside its place, made to survive a power cut, and renamed; its header holds the
hash of its bytes. The last good ones are kept. Arrays are written from where they are, and read
into memory of their own: no second copy of the state is made.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from picoedge.errors import ModelError, PicoedgeError, StorageError, UnsupportedError
from picoedge.fields import Fields
from picoedge.files import make_folder, parse_object, reading, sync, writing
from picoedge.kernels.arrays import F32

KEPT_CHECKPOINTS = 2
_VERSION = 1
_FORMAT = "picoedge-checkpoint"
_NAME = re.compile(r"step-(\d{8,12})\.safetensors")
_NO_HASH = "0" * 64
_MAX_HEADER, _MAX_FACTS, _MAX_ARRAYS = 1 << 20, 1 << 18, 64
_WINDOW = 1 << 20
_DAMAGED = "it is damaged: remove it, an older one is then taken"


@dataclass(frozen=True, eq=False)
class Saved:
    """Named f32 arrays of one dimension, and facts: a JSON object."""

    arrays: Mapping[str, F32]
    facts: Mapping[str, Any]


class Checkpoints:
    """The checkpoints in a folder, which one process uses at a time."""

    def __init__(self, folder: Path, keep: int = KEPT_CHECKPOINTS) -> None:
        self.folder, self._keep = folder, keep

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        with suppress(FileNotFoundError, NotADirectoryError):
            found = [_NAME.fullmatch(name) for name in os.listdir(self.folder)]
            return sorted(int(match[1]) for match in found if match)
        return []

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self.folder / f"step-{step:08d}.safetensors"

    def save(self, step: int, saved: Saved) -> Path:
        """Write the checkpoint of a step; older ones than the last `keep` are removed.

        Raises StorageError, and those there are remain: on a full disk at least the newest one.
        """
        path = self.path(step)
        with writing(self.folder):
            make_folder(self.folder)
        older = [other for other in self.steps() if other != step]
        try:
            write_saved(path, saved)
        except StorageError:
            if len(older) < 2:
                raise
            for other in older[:-1]:  # make room, but for the newest
                self._remove(other)
            write_saved(path, saved)
        for other in older[: len(older) + 1 - self._keep]:
            self._remove(other)
        return path

    def newest_facts(self) -> Mapping[str, Any] | None:
        """Facts of the newest checkpoint, whose arrays are not read; None: none, or not sound."""
        with suppress(PicoedgeError, IndexError):
            return read_facts(self.path(self.steps()[-1]))
        return None

    def newest(self) -> tuple[int, Saved, list[PicoedgeError]] | None:
        """The newest sound checkpoint, its step, and the faults of newer ones; None: there is none.

        Raises UnsupportedError for one of another version, and ModelError or StorageError where
        there are some, and none is sound.
        """
        faults: list[PicoedgeError] = []
        for step in reversed(self.steps()):
            try:
                return step, read_saved(self.path(step)), faults
            except UnsupportedError:
                raise
            except (ModelError, StorageError) as error:
                faults.append(error)
        if faults:
            raise type(faults[0])(f"no sound checkpoint is left: {faults[0].message}")
        return None

    def clear_partial(self) -> None:
        """Remove what a killed process was writing."""
        with suppress(OSError):
            for path in self.folder.glob(".*.new"):
                path.unlink()

    def _remove(self, step: int) -> None:
        with suppress(OSError):
            self.path(step).unlink()


def write_saved(path: Path, saved: Saved) -> None:
    """Write one file, whole or not at all. Raises StorageError."""
    header = _header(saved)
    nbytes = len(header) + sum(array.nbytes for array in saved.arrays.values())
    beside = path.with_name(f".{path.name}.new")
    try:
        with writing(path.parent, nbytes):
            with suppress(FileNotFoundError):
                beside.unlink()
            with open(beside, "xb") as file:
                file.write(header)
                for array in saved.arrays.values():
                    file.write(_bytes_of(array))
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
            sync(path.parent)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def read_saved(path: Path) -> Saved:
    """Read one file, and compare it with its hash.

    Raises ModelError where it is missing, no checkpoint, cut short or changed, UnsupportedError for
    another version, StorageError.
    """
    with reading(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head, values = _read_header(file, path, size)
        metadata, spans = _checked(values, path, size - len(head))
        arrays = {name: np.empty(count, np.float32) for name, count in spans}
        hasher = _hasher()
        claimed = metadata.text("blake2b", 64)
        hasher.update(head.replace(claimed.encode(), _NO_HASH.encode()))
        for array in arrays.values():
            for window in _windows(array):
                if file.readinto(window) != len(window):
                    raise ModelError(f"{path} ends while it is read", _DAMAGED)
                hasher.update(window)
    if hasher.hexdigest() != claimed:
        raise ModelError(f"{path}: its bytes do not match its hash", _DAMAGED)
    facts = parse_object(metadata.text("facts", _MAX_FACTS).encode(), path, _DAMAGED)
    return Saved(arrays, facts.values)


def read_facts(path: Path) -> Mapping[str, Any]:
    """The facts of one file, which is not compared with its hash. Raises as `read_saved`."""
    with reading(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head, values = _read_header(file, path, size)
        metadata, _ = _checked(values, path, size - len(head))
    return parse_object(metadata.text("facts", _MAX_FACTS).encode(), path, _DAMAGED).values


def data_start(path: Path) -> int:
    """Offset of the first array in a sound file. Raises ModelError."""
    with reading(path), open(path, "rb") as file:
        return len(_read_header(file, path, os.fstat(file.fileno()).st_size)[0])


def _hasher() -> Any:
    import hashlib

    return hashlib.blake2b(digest_size=32)


def _bytes_of(array: F32) -> memoryview:
    assert array.dtype == np.float32
    assert array.ndim == 1
    return memoryview(np.ascontiguousarray(array)).cast("B")


def _windows(array: F32) -> Iterator[memoryview]:
    view = _bytes_of(array)
    return (view[at : at + _WINDOW] for at in range(0, len(view), _WINDOW))


def _header(saved: Saved) -> bytes:
    """Length and JSON of a safetensors header, the hash in it."""
    facts = json.dumps(saved.facts, allow_nan=False)
    assert len(facts) <= _MAX_FACTS
    draft = _header_with(saved, facts, _NO_HASH)
    hasher = _hasher()
    hasher.update(draft)
    for array in saved.arrays.values():
        for window in _windows(array):
            hasher.update(window)
    return _header_with(saved, facts, hasher.hexdigest())


def _header_with(saved: Saved, facts: str, hashed: str) -> bytes:
    metadata = {"format": _FORMAT, "version": str(_VERSION), "blake2b": hashed, "facts": facts}
    values: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, array in saved.arrays.items():
        values[name] = {
            "dtype": "F32", "shape": [len(array)], "data_offsets": [at, at + array.nbytes],
        }  # fmt: skip
        at += array.nbytes
    text = json.dumps(values).encode("ascii")
    text += b" " * (-len(text) % 8)  # as the format asks for
    return struct.pack("<Q", len(text)) + text


def _read_header(file: BinaryIO, path: Path, size: int) -> tuple[bytes, Fields]:
    first = file.read(8)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 0 < length <= _MAX_HEADER or 8 + length > size:
        raise ModelError(f"{path} is no checkpoint, or cut short", _DAMAGED)
    text = file.read(length)
    return first + text, parse_object(text, path, _DAMAGED)


def _checked(values: Fields, path: Path, data: int) -> tuple[Fields, list[tuple[str, int]]]:
    """The metadata, and the values in each array, which fill the `data` bytes of the file."""
    metadata = values.object("__metadata__")
    if metadata.get("format", str, "") != _FORMAT:
        raise ModelError(f"{path} is no checkpoint of picoedge", _DAMAGED)
    version = metadata.get("version", str)
    if version != str(_VERSION):
        raise UnsupportedError(
            f"{path} is a checkpoint of version {version[:8]}; this picoedge has version "
            f"{_VERSION}",
            "go on with the picoedge that began the run, or begin anew in another folder",
        )
    names = [name for name in values.values if name != "__metadata__"]
    if len(names) > _MAX_ARRAYS:
        raise ModelError(f"{path} has {len(names)} arrays", _DAMAGED)
    spans, at = [], 0
    for name in names:
        fields = values.object(name)
        fields.one_of("dtype", ("F32",))
        shape, ends = fields.array("shape", 1), fields.array("data_offsets", 2)
        right = len(shape) == 1 and type(shape[0]) is int and shape[0] >= 0
        if not right or ends != [at, at + 4 * shape[0]]:
            raise fields.fault("data_offsets", "where the array before ends")
        spans.append((name, shape[0]))
        at += 4 * shape[0]
    if at != data:
        raise ModelError(
            f"{path} is cut short: {data} of {at} bytes" if data < at else f"{path} is too long",
            _DAMAGED,
        )
    return metadata, spans
