"""JSON written by others: typed look-ups, every failure naming file and field."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from picoedge.errors import ModelError, UnsupportedError
from picoedge.store.files import read_at, reading

T = TypeVar("T")
_LARGEST = 1e300


class Fields:
    """A JSON object of a file. `where` is its place inside, for messages; `hint` their remedy."""

    def __init__(self, values: Mapping[str, Any], path: Path, hint: str, where: str = "") -> None:
        self.values, self.path, self.hint, self.where = values, path, hint, where

    def damaged(self, field: str) -> ModelError:
        """The error for a field that is missing or wrong."""
        what = "is damaged" if field.partition(" ")[0] in self.values else "is missing"
        return ModelError(f"{self.path}: {self.where}{field} {what}", self.hint)

    def get(self, field: str, kind: type[T], default: T | None = None) -> T:
        """The value, which must be of `kind`; `default` where it is missing or null."""
        value = self.values.get(field)
        if value is None and default is not None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.damaged(field)
        return value

    def positive(self, field: str, default: float | None = None) -> float:
        """A finite number above zero."""
        value = self.values.get(field)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.damaged(field)
        if not 0 < value < _LARGEST:  # neither NaN, nor an integer that no float holds
            raise self.damaged(field)
        return float(value)

    def inside(self, field: str) -> Fields:
        """The object in a field."""
        return Fields(self.get(field, dict), self.path, self.hint, f"{self.where}{field}.")

    def build(self, field: str, make: Callable[[], T]) -> T:
        """What `make` returns; its ModelError is put down to `field`."""
        try:
            return make()
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.path}: {error.message}", error.hint) from error
        except ModelError as error:
            raise self.damaged(f"{field} ({error.message})") from error


def load_json(path: Path, max_bytes: int, hint: str) -> Fields:
    """Read a file that holds one JSON object; raises ModelError where it does not."""
    with reading(path):
        size = path.stat().st_size
    if size > max_bytes:
        raise ModelError(f"{path} has {size} bytes, at most {max_bytes} are expected", hint)
    return parse_json(read_at(path, 0, size).tobytes(), path, hint)


def parse_json(data: bytes, path: Path, hint: str) -> Fields:
    """One JSON object out of `data`, which is from `path`."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} does not hold valid JSON", hint) from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} does not hold a JSON object", hint)
    return Fields(values, path, hint)
