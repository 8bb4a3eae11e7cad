"""JSON files of models: one object, read whole, whose fields are then looked up checked."""

from __future__ import annotations

import json
from pathlib import Path

from picoedge.errors import ModelError
from picoedge.fields import Fields
from picoedge.store.files import read_at, reading


def read_object(path: Path, max_bytes: int, hint: str) -> Fields:
    """Read a file that holds one JSON object; raises ModelError where it does not."""
    with reading(path):
        size = path.stat().st_size
    if size > max_bytes:
        raise ModelError(f"{path} has {size} bytes, at most {max_bytes} are expected", hint)
    return parse_object(read_at(path, 0, size).tobytes(), path, hint)


def parse_object(data: bytes, path: Path, hint: str) -> Fields:
    """One JSON object out of `data`, which is from `path`."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} does not hold valid JSON", hint) from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} does not hold a JSON object", hint)
    return Fields(values, path, ModelError, hint)
