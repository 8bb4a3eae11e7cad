"""Where the store and the text rooms meet: a pack holds weights and the files of its text."""

from __future__ import annotations

from pathlib import Path

from picoedge.engine.fetching import Progress, stage
from picoedge.store.pack import pack
from picoedge.store.sources import Source, open_source
from picoedge.text import export


def pack_model(
    path: Path, out: Path, *, bits: int | None = None, progress: Progress | None = None
) -> None:
    """Pack the GGUF file or Hugging Face folder at `path` as `out`; a pack there is replaced.

    Raises ModelError, UnsupportedError, TextError, StorageError, UsageError.
    """
    source = open_source(path)
    told = stage(progress, f"packing {source.name}")
    pack(source, out, bits=bits, write_text=write_text, progress=told)


def write_text(source: Source, folder: Path) -> None:
    """Write the tokenizer's and template's files of `source` into the pack `folder`."""
    if source.kind == "gguf":
        export.write_from_gguf(source.metadata, folder)
    else:
        export.write_from_huggingface(source.path, folder)
