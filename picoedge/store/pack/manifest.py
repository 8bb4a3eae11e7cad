"""`picoedge.json`, the manifest of a pack, checked against the layout computed from its config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picoedge.config import ModelConfig
from picoedge.errors import ModelError, UnsupportedError
from picoedge.fields import Fields
from picoedge.files import parse_object, read_object
from picoedge.kernels.blocks import FORMATS
from picoedge.store.encodings import ENCODINGS
from picoedge.store.pack.sharding import (
    ATTENTION_MATRICES,
    FFN_MATRICES,
    FileLayout,
    Geometry,
    PackLayout,
    ShardLayout,
    attention_layout,
    ffn_layout,
    head_layout,
)
from picoedge.store.shards import HASH, MANIFEST, MANIFEST_BYTES, is_count, is_file_name

FORMAT_NAME = "picoedge-pack"
FORMAT_VERSION = 1
_REMEDY = "pack the model again"


@dataclass(frozen=True, eq=False)
class Manifest:
    """Checked content of a manifest; `embed`: encoding of an untied embedding, "" where tied."""

    name: str
    source: dict[str, Any]
    layout: PackLayout
    files: list[FileLayout]
    embed: str
    hashes: dict[str, str]
    text_sizes: dict[str, int]


def read_manifest(folder: Path) -> Manifest:
    """Read and check. Raises ModelError naming the file, UnsupportedError on another version."""
    return _manifest(read_object(folder / MANIFEST, MANIFEST_BYTES, _REMEDY))


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Check a peer's manifest, to be written at `path`. Raises as `read_manifest`."""
    if len(data) > MANIFEST_BYTES:
        raise ModelError(f"{path} would have {len(data)} bytes, at most {MANIFEST_BYTES} may be")
    return _manifest(parse_object(data, path, _REMEDY))


def _manifest(values: Fields) -> Manifest:
    if values.get("format", str) != FORMAT_NAME:
        raise values.fault("format", repr(FORMAT_NAME))
    version = values.get("version", int)
    if version != FORMAT_VERSION:
        raise UnsupportedError(
            f"{values.where}: pack version {version}, this picoedge reads {FORMAT_VERSION}", _REMEDY
        )
    config = _config(values)
    layout, embed = _layout(values, config)
    files = layout.files()
    hashes = _shard_hashes(values, files)
    sizes = _texts(values, hashes, {file.name for file in files})
    source = values.get("source", dict)
    return Manifest(values.get("name", str), source, layout, files, embed, hashes, sizes)


def _config(values: Fields) -> ModelConfig:
    raw = values.get("config", dict)
    fields = values.object("config")
    for name in ("rms_norm_eps", "rope_theta", "rope_local_theta", "embed_scale"):
        fields.positive(name)
    for name in ("tie_word_embeddings", "qkv_bias", "qk_norm", "sandwich_norm"):
        fields.get(name, bool)
    for name in ("architecture", "hidden_act"):
        fields.get(name, str)
    if fields.get("sliding_window", int) < 0:
        raise fields.fault("sliding_window")
    _check_scaling(fields.object("rope_scaling"))
    config = values.build("config", lambda: ModelConfig.from_json(raw))
    layers = fields.get("windowed_layers", list)
    if not all(isinstance(i, int) and 0 <= i < config.num_hidden_layers for i in layers):
        raise fields.fault("windowed_layers")
    if fields.values.get("attention_scale") != 0:
        fields.positive("attention_scale")
    factors = config.rope_scaling.freq_factors
    if factors and len(factors) != config.head_dim // 2:
        raise fields.fault("rope_scaling.freq_factors")
    return config


def _check_scaling(fields: Fields) -> None:
    fields.one_of("kind", ("none", "linear", "llama3"))
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for name in names:
        fields.positive(name)
    factors = fields.get("freq_factors", list)
    numbered = {str(i): factor for i, factor in enumerate(factors)}
    for name in numbered:
        Fields(numbered, fields.where, ModelError, _REMEDY, "freq_factors.").positive(name)


def _layout(values: Fields, config: ModelConfig) -> tuple[PackLayout, str]:
    geometry = _geometry(values, config)
    layers = values.objects("layers")
    if len(layers) != config.num_hidden_layers:
        raise values.fault("layers")
    width = geometry.ffn_shard_cols
    attention, ffn = [], []
    for layer in layers:
        attention.append(
            _shard(layer, "attention", ATTENTION_MATRICES, lambda f: attention_layout(config, f))
        )
        ffn.append(_shard(layer, "ffn", FFN_MATRICES, lambda f: ffn_layout(config, width, f)))
    rows = geometry.head_shard_rows
    head = _shard(values, "head", ("head",), lambda f: head_layout(config, rows, f["head"]))
    embed = "" if config.tie_word_embeddings else values.get("embed", str)
    if not config.tie_word_embeddings and embed not in ENCODINGS:
        raise values.fault("embed")
    row_bytes = 0
    if embed:
        row_bytes = values.build("embed", lambda: ENCODINGS[embed].row_bytes(config.hidden_size))
    return PackLayout(config, geometry, tuple(attention), tuple(ffn), head, row_bytes), embed


def _geometry(values: Fields, config: ModelConfig) -> Geometry:
    fields = values.object("geometry")
    width, rows = fields.get("ffn_shard_cols", int), fields.get("head_shard_rows", int)
    geometry = values.build("geometry", lambda: Geometry.of(config, width, rows))
    layer_shards = geometry.attention_shards + geometry.ffn_shards
    count = layer_shards * config.num_hidden_layers + geometry.head_shards
    # Checked before tables of names are made: the file must be long enough to list them.
    if count > len(values.get("shards", dict)):
        raise values.fault("shards")
    return geometry


def _shard(
    values: Fields, kind: str, names: tuple[str, ...],
    make: Callable[[dict[str, str]], ShardLayout],
) -> ShardLayout:  # fmt: skip
    """The layout for the named formats; the rest of the entry must equal it."""
    fields = values.object(kind)
    matrices = fields.object("matrices")
    formats = {name: matrices.object(name).get("format", str) for name in names}
    if not set(formats.values()) <= set(FORMATS):
        raise fields.fault("matrices")
    layout = values.build(kind, lambda: make(formats))
    if layout.to_json() != fields.values:
        raise values.fault(kind)
    return layout


def _shard_hashes(values: Fields, files: list[FileLayout]) -> dict[str, str]:
    table = values.object("shards")
    hashes: dict[str, str] = {}
    for entry in (entry for file in files for entry in file.entries()):
        row = table.object(entry.name)
        listed = (row.get("file", str), row.get("offset", int), row.get("bytes", int))
        if listed != (entry.file, entry.offset, entry.nbytes):
            raise table.fault(entry.name)
        hashes[entry.name] = _hash(row)
    if len(hashes) != len(table.values):
        raise values.fault("shards")
    return hashes


def _hash(row: Fields) -> str:
    return row.text("blake2b", pattern=HASH, expected="a hash")


def _texts(values: Fields, hashes: dict[str, str], taken: set[str]) -> dict[str, int]:
    table = values.object("text")
    sizes: dict[str, int] = {}
    for name in table.values:
        row = table.object(name)
        size = row.get("bytes", int)
        if name in taken or not is_file_name(name) or not is_count(size):
            raise table.fault(repr(name))
        sizes[name], hashes[name] = size, _hash(row)
    return sizes
