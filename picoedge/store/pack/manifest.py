"""`picoedge.json`, the manifest of a pack, checked against the layout computed from its config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from picoedge.config import ModelConfig, model_sampling
from picoedge.errors import ModelError, UnsupportedError
from picoedge.fields import Fields
from picoedge.files import parse_object, read_object
from picoedge.kernels.blocks import FORMATS
from picoedge.store.encodings import ENCODINGS
from picoedge.store.pack.sharding import (
    MATRICES,
    FileLayout,
    Geometry,
    PackLayout,
    ShardLayout,
    shard_layout,
)
from picoedge.store.shards import (
    MANIFEST,
    MANIFEST_BYTES,
    MANIFEST_VALUES,
    PackItem,
    UnitKind,
    inventory,
)

FORMAT_NAME = "picoedge-pack"
FORMAT_VERSION = 1
_REMEDY = "pack the model again"
_DIVISORS = ("freq_factors", "long_factors")


@dataclass(frozen=True, eq=False)
class Manifest:
    """Checked content of a manifest; `embed`: encoding of an untied embedding, "" where tied."""

    name: str
    source: dict[str, Any]
    layout: PackLayout
    files: list[FileLayout]
    embed: str
    items: dict[str, PackItem]
    sampling: dict[str, float]  # how the model says that it is to be sampled


def read_manifest(folder: Path) -> Manifest:
    """Read and check. Raises ModelError naming the file, UnsupportedError on another version."""
    return _manifest(read_object(folder / MANIFEST, MANIFEST_BYTES, _REMEDY, MANIFEST_VALUES))


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Check a peer's manifest, to be written at `path`. Raises as `read_manifest`."""
    if len(data) > MANIFEST_BYTES:
        raise ModelError(f"{path} would have {len(data)} bytes, at most {MANIFEST_BYTES} may be")
    return _manifest(parse_object(data, path, _REMEDY, MANIFEST_VALUES))


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
    items = _items(values, files)
    source = values.get("source", dict)
    sampling = model_sampling(values.get("sampling", dict, {}))
    return Manifest(values.get("name", str), source, layout, files, embed, items, sampling)


def _config(values: Fields) -> ModelConfig:
    raw = values.get("config", dict)
    fields = values.object("config")
    for name in ("rms_norm_eps", "rope_theta", "rope_local_theta", "embed_scale"):
        fields.positive(name)
    for name in ("tie_word_embeddings", "qkv_bias", "qk_norm", "sandwich_norm"):
        fields.get(name, bool)
    fields.get("hidden_act", str)  # which has a default, but not here
    if fields.get("sliding_window", int) < 0:
        raise fields.fault("sliding_window")
    _check_scaling(fields.object("rope_scaling"))
    config = values.build("config", lambda: ModelConfig.from_json(raw))
    layers = fields.get("windowed_layers", list)
    if not all(isinstance(i, int) and 0 <= i < config.num_hidden_layers for i in layers):
        raise fields.fault("windowed_layers")
    if fields.values.get("attention_scale") != 0:
        fields.positive("attention_scale")
    for name in _DIVISORS:
        factors = getattr(config.rope_scaling, name)
        if factors and len(factors) != config.head_dim // 2:
            raise fields.object("rope_scaling").fault(name)
    return config


def _check_scaling(fields: Fields) -> None:
    kind = fields.one_of("kind", ("none", "linear", "llama3", "yarn", "longrope"))
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for name in names:
        fields.positive(name)
    fields.positive("attention_factor", 1.0)
    for name in _DIVISORS:
        numbered = {str(i): v for i, v in enumerate(fields.get(name, list, []))}
        for i in numbered:
            Fields(numbered, fields.where, ModelError, _REMEDY, f"{name}.").positive(i)
    if kind in ("yarn", "longrope") and not fields.get("freq_factors", list):
        raise fields.fault("freq_factors")


def _layout(values: Fields, config: ModelConfig) -> tuple[PackLayout, str]:
    geometry = _geometry(values, config)
    layers = values.objects("layers")
    if len(layers) != config.num_hidden_layers:
        raise values.fault("layers")
    attention = tuple(_shard(layer, "attention", config, geometry) for layer in layers)
    ffn = tuple(_shard(layer, "ffn", config, geometry) for layer in layers)
    head = _shard(values, "head", config, geometry)
    if config.tie_word_embeddings:
        return PackLayout(config, geometry, attention, ffn, head, 0), ""
    embed = values.one_of("embed", ENCODINGS)
    row_bytes = values.build("embed", lambda: ENCODINGS[embed].row_bytes(config.hidden_size))
    return PackLayout(config, geometry, attention, ffn, head, row_bytes), embed


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


def _shard(values: Fields, kind: UnitKind, config: ModelConfig, geometry: Geometry) -> ShardLayout:
    """The layout for the formats in an entry; the rest of the entry must equal it."""
    fields = values.object(kind)
    matrices = fields.object("matrices")
    formats = {name: matrices.object(name).get("format", str) for name in MATRICES[kind]}
    if not set(formats.values()) <= set(FORMATS):
        raise fields.fault("matrices")
    layout = values.build(kind, lambda: shard_layout(kind, config, geometry, formats))
    if layout.to_json() != fields.values:
        raise values.fault(kind)
    return layout


def _items(values: Fields, files: list[FileLayout]) -> dict[str, PackItem]:
    """The items that are listed: all shards and vectors of the layout, and texts."""
    listed = inventory(values.values, values.where)
    items: dict[str, PackItem] = {}
    for expected in (item for file in files for item in file.items()):
        found = listed.pop(expected.name, expected)
        if found != replace(expected, blake2b=found.blake2b) or not found.blake2b:
            raise values.object("shards").fault(expected.name)
        items[found.name] = found
    if len(items) != len(values.get("shards", dict)):
        raise values.fault("shards")
    taken = {file.name for file in files}
    for text in listed.values():
        if not text.is_text or text.offset or text.name in taken:
            raise values.object("text").fault(repr(text.name))
    return items | listed
