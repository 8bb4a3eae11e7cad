"""Model sources: GGUF files and Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

from picoedge.errors import ModelError
from picoedge.files import reading
from picoedge.store.shards import MANIFEST
from picoedge.store.sources.gguf_source import GgufSource
from picoedge.store.sources.huggingface import FolderSource
from picoedge.store.sources.tensors import ModelSource

__all__ = ["ModelSource", "open_source"]


def open_source(path: Path) -> ModelSource:
    """Open a `.gguf` file (any part of a split one) or a Hugging Face folder.

    Raises ModelError where it is missing or damaged, UnsupportedError on an unsupported kind,
    architecture or tensor type.
    """
    path = Path(path)
    with reading(path):
        is_folder = path.is_dir()
    if not is_folder:
        return GgufSource(path)
    if (path / MANIFEST).exists():
        raise ModelError(f"{path} is already packed", "use it as it is")
    return FolderSource(path)
