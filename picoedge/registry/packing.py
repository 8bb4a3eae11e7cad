"""Pack a model into one folder: weights by the store, tokenizer and chat template by the text."""

from __future__ import annotations

import tempfile
from pathlib import Path

from picoedge.errors import ModelError
from picoedge.progress import Progress, one_stage
from picoedge.registry.paths import as_storage_error
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.pack.repack import PackSource
from picoedge.store.shards import MANIFEST
from picoedge.store.sources.huggingface import read_folder_config
from picoedge.store.sources.source import ModelSource, open_source
from picoedge.text.export import export
from picoedge.text.tokenizer.load import load_tokenizer


def pack_model(
    path: Path, out: Path, *, bits: int | None = None, progress: Progress | None = None
) -> None:
    """Pack the GGUF file, Hugging Face folder or f32 pack at `path` as `out`; a pack there is
    replaced.

    Raises ModelError, UnsupportedError, TextError, StorageError, UsageError.
    """
    source = open_any_source(path)
    told = one_stage(progress, f"packing {source.name}")
    pack_source(source, out, bits=bits, write_text=write_text, progress=told)


def open_any_source(path: Path) -> ModelSource:
    """As `open_source`; also a pack whose matrices are in f32, which `train` makes."""
    if (path / MANIFEST).is_file():
        return PackSource(Pack.open(path))
    return open_source(path)


def check_before_weights(folder: Path) -> None:
    """Raise what `pack_model` would for a Hugging Face folder whose weights are yet to come.

    Raises ModelError, UnsupportedError, TextError, StorageError.
    """
    read_folder_config(folder)
    with (
        as_storage_error(folder),
        tempfile.TemporaryDirectory(prefix=".check", dir=folder) as place,
    ):
        export.write_from_huggingface(folder, Path(place))


def write_text(source: ModelSource, folder: Path) -> None:
    """Write the tokenizer's and template's files of `source` into the pack `folder`.

    Raises TextError, and ModelError where the tokenizer cannot be the model's.
    """
    if isinstance(source, PackSource):
        return source.write_text(folder)
    if source.kind == "gguf":
        export.write_from_gguf(source.metadata, folder)
    else:
        export.write_from_huggingface(source.path, folder)
    tokenizer, known = load_tokenizer(folder), source.config.vocab_size
    # Some models list special tokens that were never given an embedding; ordinary ones must have.
    if any(not tokenizer.is_special(i) for i in range(known, tokenizer.vocab_size)):
        raise ModelError(
            f"{source.name}: its tokenizer has {tokenizer.vocab_size} tokens, "
            f"its embedding {known}",
            "the tokenizer is another model's: get the model's own files",
        )
