"""Model sources: GGUF files and Hugging Face folders behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from picoedge.config import ModelConfig
from picoedge.errors import ModelError
from picoedge.files import reading
from picoedge.store.shards import MANIFEST
from picoedge.store.sources.gguf_source import GgufSource
from picoedge.store.sources.huggingface import FolderSource
from picoedge.store.sources.tensors import SourceTensor


class ModelSource(Protocol):
    """A model that can be packed."""

    kind: str  # "gguf" or "huggingface"
    name: str
    path: Path
    config: ModelConfig
    tensor_bytes: int
    fingerprint: str  # hash of file sizes, times and first bytes
    metadata: Mapping[str, Any]  # a GGUF's key-values, large ones read on access

    def tensor(self, name: str) -> SourceTensor:
        """The tensor of a canonical name. Raises ModelError naming it where it is missing."""


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
