"""Sizes in the catalogue: bytes of a model's weights and of its pack, and the memory it takes.

    python -m bench.catalogue_sizes

They are computed from the model's shape and from the formats that llama.cpp gives each tensor. The
bytes are exact but for a file's vocabulary; the memory is the planner's, with a context of 4096.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from picoedge.config import ModelConfig
from picoedge.planner.memory import Load, need_of
from picoedge.store.encodings import ENCODINGS
from picoedge.store.pack.sharding import MATRICES, Geometry, PackLayout, shard_layout
from picoedge.store.shards import Slice, Unit, UnitKind
from picoedge.store.sources.tensors import tensor_shapes
from picoedge.units import MB

CONTEXT, LEAST_CONTEXT = 4096, 512
PROCESS_BYTES = 52 * MB  # interpreter and libraries
TOKEN_BYTES = 420  # of a tokenizer, for each of its tokens: measured with 150,000
SPARE_BYTES = 30 * MB  # what a process grows by while it streams
ROUND = 10 * MB
_NAMES = {"head": "embed", "embed": "embed"}


@dataclass(frozen=True)
class Shape:
    """A model of the catalogue: its shape, and the quantization of its file."""

    name: str
    architecture: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    quant: str
    tied: bool = True

    @property
    def config(self) -> ModelConfig:
        """The config, as far as sizes depend on it."""
        gemma = self.architecture == "gemma3"
        return ModelConfig(
            architecture=self.architecture, hidden_size=self.hidden, intermediate_size=self.inner,
            num_hidden_layers=self.layers, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, head_dim=self.head_dim, vocab_size=self.vocab,
            max_position_embeddings=8192, rms_norm_eps=1e-6, rope_theta=1e6,
            tie_word_embeddings=self.tied, qk_norm=gemma or self.architecture == "qwen3",
            sandwich_norm=gemma, sliding_window=512 if gemma else 0,
            windowed_layers=(0,) if gemma else (),
        )  # fmt: skip


SHAPES = (
    Shape("smollm2-360m", "llama", 960, 2560, 32, 15, 5, 64, 49152, "Q8_0"),
    Shape("smollm2-1.7b", "llama", 2048, 8192, 24, 32, 32, 64, 49152, "Q4_K_M"),
    Shape("qwen3-0.6b", "qwen3", 1024, 3072, 28, 16, 8, 128, 151936, "Q8_0"),
    Shape("qwen3-1.7b", "qwen3", 2048, 6144, 28, 16, 8, 128, 151936, "Q8_0"),
    Shape("qwen3-4b", "qwen3", 2560, 9728, 36, 32, 8, 128, 151936, "Q4_K_M"),
    Shape("qwen3-8b", "qwen3", 4096, 12288, 36, 32, 8, 128, 151936, "Q4_K_M", tied=False),
    Shape("llama3.2-1b", "llama", 2048, 8192, 16, 32, 8, 64, 128256, "Q4_K_M"),
    Shape("llama3.2-3b", "llama", 3072, 8192, 28, 24, 8, 128, 128256, "Q4_K_M"),
    Shape("gemma3-1b", "gemma3", 1152, 6912, 26, 4, 1, 256, 262144, "Q4_K_M"),
    Shape("gemma3-4b", "gemma3", 2560, 10240, 34, 8, 4, 256, 262208, "Q4_K_M"),
    Shape("phi4-mini", "llama", 3072, 8192, 32, 24, 8, 128, 200064, "Q4_K_M"),
)


@dataclass(frozen=True)
class Sizes:
    """Bytes of the file's weights, of the pack, and of memory: whole, and least."""

    weights: int
    pack: int
    memory: int
    least: int


def encoding_of(shape: Shape, kind: str, layer: int, cols: int) -> str:
    """The format that llama.cpp's quantizer gives a matrix (llama_tensor_get_type)."""
    if shape.quant == "Q8_0":
        return "Q8_0"
    n = shape.layers
    sharp = layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2
    tied_head = kind == "embed" and shape.tied
    better = kind == "head" or tied_head or (kind in ("v", "down") and sharp)
    if shape.name == "phi4-mini" and kind in ("q", "k", "v"):
        return "Q5_K"  # they are one matrix there
    if cols % 256:
        return "Q8_0" if better else "Q5_0"
    return "Q6_K" if better else "Q4_K"


def sizes_of(shape: Shape) -> Sizes:
    """All sizes of a model."""
    config = shape.config
    weights, formats = 0, dict[tuple[str, int], str]()
    for name, (rows, cols) in tensor_shapes(config).items():
        *_, kind = name.split(".")
        layer = int(name.split(".")[1]) if name.startswith("layers.") else 0
        if cols == 1:
            weights += 4 * rows
            continue
        encoding = ENCODINGS[encoding_of(shape, kind, layer, cols)]
        weights += rows * encoding.row_bytes(cols)
        formats[kind, layer] = encoding.format
    layout = _layout(shape, config, formats)
    pack = sum(file.nbytes for file in layout.files())
    process = PROCESS_BYTES + TOKEN_BYTES * shape.vocab
    whole, least = (need_of(_load(layout, n_ctx)) for n_ctx in (CONTEXT, LEAST_CONTEXT))
    return Sizes(
        weights,
        pack,
        _rounded(process + whole.beside + whole.weights),
        _rounded(process + SPARE_BYTES + least.beside + least.window),
    )


def _layout(shape: Shape, config: ModelConfig, formats: dict[tuple[str, int], str]) -> PackLayout:
    geometry = Geometry.plan(config)

    def shard(kind: UnitKind, layer: int) -> dict[str, str]:
        return {
            name: formats[("embed" if name == "head" and shape.tied else name), layer]
            for name in MATRICES[kind]
        }

    layers = range(shape.layers)
    attention = (shard_layout("attention", config, geometry, shard("attention", i)) for i in layers)
    ffn = (shard_layout("ffn", config, geometry, shard("ffn", i)) for i in layers)
    head = shard_layout("head", config, geometry, shard("head", 0))
    embed = encoding_of(shape, "embed", 0, shape.hidden)
    row_bytes = 0 if shape.tied else ENCODINGS[embed].row_bytes(shape.hidden)
    return PackLayout(config, geometry, tuple(attention), tuple(ffn), head, row_bytes)


def _load(layout: PackLayout, n_ctx: int) -> Load:
    geometry, config = layout.geometry, layout.config
    order: Sequence[tuple[UnitKind, int]] = [
        *((kind, i) for i in range(config.num_hidden_layers) for kind in _KINDS),
        ("head", 0),
    ]
    units = tuple(
        Unit(kind, i, range(geometry.count(kind)), "", 0,
             geometry.count(kind) * layout.shard(kind, i).nbytes)
        for kind, i in order
    )  # fmt: skip
    attention, ffn, head = (range(geometry.count(kind)) for kind in (*_KINDS, "head"))
    shards = Slice(attention, ffn, head)
    return Load(config, shards, units, geometry.ffn_shard_cols, n_ctx, 16, geometry.head_shard_rows)


_KINDS: tuple[UnitKind, ...] = ("attention", "ffn")


def _rounded(nbytes: int) -> int:
    return -(-nbytes // ROUND) * ROUND


def main() -> None:
    """Print a line for each model."""
    for shape in SHAPES:
        sizes = sizes_of(shape)
        print(
            f"{shape.name:14} {shape.quant:7} weights {sizes.weights} pack {sizes.pack} "
            f"memory {sizes.memory // MB}M least {sizes.least // MB}M"
        )


if __name__ == "__main__":
    main()
