"""A Hugging Face folder as a source of canonical tensors."""
from __future__ import annotations

from pathlib import Path

from picoedge.errors import UnsupportedError
from picoedge.store.sources import Source


def open_folder(path: Path) -> Source:
    """Not yet."""
    raise UnsupportedError(f"{path}: folders are not supported yet")
