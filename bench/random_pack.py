"""A pack of random weights, written shard by shard as fast as the disk takes it.

A few distinct shards of each kind are made, hashed once, and dealt out again and again: every
hash in the manifest is that of the bytes in the file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.children import BenchError
from bench.random_models import NORM_SD, WEIGHT_SD, Shape, tokenizer_metadata
from picoedge.config import ModelConfig
from picoedge.files import digest
from picoedge.kernels.arrays import U8
from picoedge.store.encodings import ENCODINGS
from picoedge.store.pack.atomic_folder import new_folder
from picoedge.store.pack.manifest import FORMAT_NAME, FORMAT_VERSION
from picoedge.store.pack.packer import output_file
from picoedge.store.pack.sharding import (
    MATRICES,
    FileLayout,
    Geometry,
    PackLayout,
    ShardLayout,
    shard_layout,
)
from picoedge.store.shards import MANIFEST, PackItem
from picoedge.text.export.export import write_from_gguf

FORMAT, EMBED = "q4", "Q4_0"
DISTINCT = 2  # shards of each kind: 33 MB of a 70B model
SPARE_BYTES = 4 << 30  # left on the disk
_SCALE = WEIGHT_SD / 4.6  # standard deviation of a uniform nibble

Image = tuple[U8, str]
"""(bytes of a shard, their hash)"""


def config_of(shape: Shape, layers: int) -> ModelConfig:
    """The config of a model of this shape with so many layers."""
    return ModelConfig(
        architecture="llama",
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        rms_norm_eps=shape.rms_norm_eps,
        rope_theta=shape.rope_theta,
    )


def layout_of(shape: Shape, layers: int) -> PackLayout:
    """Every byte of the pack: all matrices in q4, the embedding in Q4_0."""
    config = config_of(shape, layers)
    geometry = Geometry.plan(config)
    attention, ffn, head = (
        shard_layout(kind, config, geometry, dict.fromkeys(names, FORMAT))
        for kind, names in MATRICES.items()
    )
    row_bytes = ENCODINGS[EMBED].row_bytes(config.hidden_size)
    return PackLayout(config, geometry, (attention,) * layers, (ffn,) * layers, head, row_bytes)


def layers_that_fit(shape: Shape, folder: Path) -> int:
    """As many of the shape's layers as the disk has room for. Raises BenchError for none."""
    one, two = (sum(f.nbytes for f in layout_of(shape, n).files()) for n in (1, 2))
    free = shutil.disk_usage(folder).free - SPARE_BYTES
    layers = min(shape.num_hidden_layers, 1 + (free - one) // (two - one))
    if layers < 1:
        raise BenchError(f"{folder} has no room for one layer of {two - one} bytes")
    return layers


def write_pack(
    out: Path, shape: Shape, layers: int | None = None, seed: int = 0, template: str = ""
) -> None:
    """Write the pack `out`; it appears whole. `layers`: fewer (or more) than the shape has."""
    layout = layout_of(shape, shape.num_hidden_layers if layers is None else layers)
    files = layout.files()
    images = _Images(layout, np.random.default_rng(seed))
    with new_folder(out, sum(file.nbytes for file in files)) as folder:
        chat = {"tokenizer.chat_template": template} if template else {}
        write_from_gguf({**tokenizer_metadata(shape.vocab_size), **chat}, folder)
        texts = {
            path.name: {"bytes": size, "blake2b": digest(path, 0, size)}
            for path in sorted(folder.glob("[!.]*"))  # its texts: no shard is there yet
            for size in (path.stat().st_size,)
        }
        shards = dict(row for file in files for row in _write_file(folder, file, images))
        (folder / MANIFEST).write_text(json.dumps(_manifest(out, layout, shards, texts)))


class _Images:
    """The distinct shards (and norms) of each kind, made when first asked for, then by turns."""

    def __init__(self, layout: PackLayout, rng: np.random.Generator) -> None:
        self._layout, self._rng = layout, rng
        self._turns: dict[str, Iterator[Image]] = {}

    def next(self, span: PackItem) -> Image:
        """Bytes for a span, and their hash."""
        kind = span.name.rpartition("/")[2].partition(".")[0]
        if kind not in self._turns:
            made = [self._make(kind, span.nbytes) for _ in range(DISTINCT)]
            self._turns[kind] = itertools.cycle(made)
        return next(self._turns[kind])

    def _make(self, kind: str, nbytes: int) -> Image:
        layout = self._layout
        runs = {"attention": layout.attention[0], "ffn": layout.ffn[0], "head": layout.head}
        if kind in runs:
            data = random_shard(runs[kind], self._rng)
        elif kind == "embed":
            data = _random_rows(nbytes, self._rng)
        else:
            norm = 1 + NORM_SD * self._rng.standard_normal(nbytes // 4)
            data = norm.astype("<f4").view(np.uint8)
        return data, hashlib.blake2b(data.data, digest_size=32).hexdigest()


def random_shard(layout: ShardLayout, rng: np.random.Generator) -> U8:
    """Random nibbles under small scales, u8 [shard bytes]."""
    shard = np.zeros(layout.nbytes, np.uint8)
    for spec in layout.matrices.values():
        quants, scales = spec.plane(shard, "quants"), spec.plane(shard, "scales")
        quants[...] = rng.integers(0, 256, quants.shape, np.uint8)
        scales[...] = _SCALE * rng.uniform(0.5, 1.5, scales.shape)
    return shard


def _random_rows(nbytes: int, rng: np.random.Generator) -> U8:
    """Blocks of Q4_0: an f16 scale and 16 bytes of nibbles."""
    rows = rng.integers(0, 256, (nbytes // ENCODINGS[EMBED].nbytes, 18), np.uint8)
    scales = _SCALE * rng.uniform(0.5, 1.5, len(rows))
    rows[:, :2] = scales.astype("<f2").reshape(-1, 1).view(np.uint8)
    return rows.reshape(-1)


def _write_file(
    folder: Path, file: FileLayout, images: _Images
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write one file; yields the rows of the shard table."""
    with output_file(folder / file.name, file.nbytes, lambda n: None) as write:
        write(0, file.header)
        for span in file.items():
            data, blake2b = images.next(span)
            write(span.offset, data)
            place = {"file": span.file, "offset": span.offset, "bytes": span.nbytes}
            yield span.name, {**place, "blake2b": blake2b}


def _manifest(
    out: Path, layout: PackLayout, shards: dict[str, Any], texts: dict[str, Any]
) -> dict[str, Any]:
    name = out.name.removesuffix(".pico")
    return {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "name": name,
        "source": {"kind": "random", "name": name, "fingerprint": "", "file": ""},
        **layout.to_json(),
        "embed": EMBED,
        "shards": shards,
        "text": texts,
    }
