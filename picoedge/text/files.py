"""Small text and JSON files; failures become TextError or StorageError."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from picoedge.errors import StorageError, TextError

_MAX_BYTES = 64 << 20


def read_text_file(path: Path, max_bytes: int = _MAX_BYTES) -> str:
    """Content of a UTF-8 file. Raises TextError where it is missing, too large or not text."""
    try:
        if path.stat().st_size > max_bytes:
            raise TextError(f"{path} is larger than {max_bytes} bytes", "get a sound copy")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TextError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not text: {error}", "get a sound copy") from error


def read_json_file(path: Path) -> dict[str, Any]:
    """A file's JSON object. Raises TextError as `read_text_file`, and on anything else."""
    try:
        values = json.loads(read_text_file(path))
    except (ValueError, RecursionError) as error:
        raise TextError(f"{path} is not JSON: {error}", "get a sound copy") from error
    if not isinstance(values, dict):
        raise TextError(f"{path} does not hold a JSON object", "get a sound copy")
    return values


def read_json_if_any(path: Path) -> dict[str, Any]:
    """A file's JSON object, {} where the file does not exist."""
    return read_json_file(path) if path.exists() else {}


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Turn a failed write into StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"writing to {folder} failed: {error.strerror or error}") from error
