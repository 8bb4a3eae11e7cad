"""A pack as files of other programs: weights by the store, tokenizer and template by the text."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from picoedge.config import ModelConfig, RopeScaling
from picoedge.errors import UsageError
from picoedge.files import disk_full, free_bytes, make_folder, sync, writing
from picoedge.kernels.arrays import F32
from picoedge.model.bound_kernels import inverse_frequencies
from picoedge.progress import Progress, no_progress
from picoedge.store.export.floats import FloatType
from picoedge.store.export.gguf_export import GgufExport
from picoedge.store.export.huggingface_folder import HuggingFaceExport
from picoedge.store.pack.atomic_folder import new_folder, scratch_folder, sweep
from picoedge.store.pack.pack_tensors import PackTensors
from picoedge.store.pack.reader import Pack
from picoedge.text.export.to_gguf import gguf_text_values
from picoedge.text.export.to_huggingface import write_huggingface_text

ExportForm = Literal["hf", "gguf"]
_SPARE_BYTES = 16 << 20  # beside the weights


def export_pack(
    pack: Pack,
    out: Path,
    form: ExportForm,
    dtype: FloatType | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Write the pack as a Hugging Face folder or a GGUF file at `out`; returns warnings.

    `dtype` None: f32 for a pack in f32, else f16. `out` appears when it is complete; on an error
    nothing is left. Raises UsageError where something is at `out`, ModelError where the pack is
    damaged or not whole, TextError, UnsupportedError for what the form cannot say, StorageError.
    """
    if os.path.lexists(out):
        raise UsageError(f"{out} exists", "choose another name, or remove it first")
    tensors = PackTensors(pack)
    chosen = dtype or ("f32" if tensors.is_exact else "f16")
    write = _write_folder if form == "hf" else _write_gguf
    return write(tensors, out, chosen, progress or no_progress)


def _write_folder(
    tensors: PackTensors, out: Path, dtype: FloatType, progress: Progress
) -> list[str]:
    pack, export = tensors.pack, HuggingFaceExport(tensors, dtype)
    with new_folder(out, export.nbytes) as folder, writing(folder.parent, export.nbytes):
        warnings = write_huggingface_text(
            pack.path, folder, pack.config.vocab_size, pack.sampling,
            pack.config.max_position_embeddings,
        )  # fmt: skip
        export.write(folder, _told(progress, pack.name, export.nbytes))
    return warnings


def _write_gguf(tensors: PackTensors, out: Path, dtype: FloatType, progress: Progress) -> list[str]:
    pack = tensors.pack
    export = GgufExport(tensors, dtype, rope_divisors(pack.config))
    text = gguf_text_values(pack.path, pack.config.vocab_size)
    parent = out.absolute().parent
    with writing(parent, export.nbytes):
        make_folder(parent)
        sweep(parent)
        if free_bytes(parent) < export.nbytes + _SPARE_BYTES:
            raise disk_full(parent, export.nbytes)
        with scratch_folder(parent) as folder:
            partial = folder / "model.gguf"
            with partial.open("xb") as file:
                export.write(file, text, _told(progress, pack.name, export.nbytes))
                file.flush()
                os.fsync(file.fileno())
            if os.path.lexists(out):
                raise UsageError(f"{out} exists now", "choose another name, or remove it first")
            partial.rename(out)
        sync(parent)
    return []


def _told(progress: Progress, name: str, total: int) -> Callable[[int], None]:
    """Adds up the bytes that are written."""
    done = 0

    def wrote(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(f"exporting {name}", min(done, total), total)

    return wrote


def rope_divisors(config: ModelConfig) -> F32 | None:
    """Divisors of rope's frequencies, f32 [head_dim / 2]; None: one factor says all."""
    scaling = config.rope_scaling
    if scaling.kind != "llama3":
        return None
    plain, stretched = (
        inverse_frequencies(config.head_dim, config.rope_theta, each)
        for each in (RopeScaling(), scaling)
    )
    divisors: F32 = (plain / stretched).astype(np.float32)
    return divisors
