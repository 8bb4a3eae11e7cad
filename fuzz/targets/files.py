"""Files of models: GGUF, safetensors, Hugging Face's config, tokenizers, packs."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from fuzz.gguf.file import Gguf
from fuzz.gguf.models import SAMPLES
from fuzz.gguf.mutations import mutated_gguf
from fuzz.inputs import of_values
from fuzz.mutate import crowd, mutate_bytes, mutate_json, mutate_value, to_json
from fuzz.target import Run, Target
from picoedge.errors import PicoedgeError
from picoedge.store.pack.manifest import parse_manifest
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import MANIFEST
from picoedge.store.sources.gguf_source import GgufSource
from picoedge.store.sources.huggingface import FolderSource
from picoedge.store.sources.tensors import ModelSource

READ_ROWS = 4  # of each tensor
CROWD_BYTES = 6 << 20

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 266,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "attention_bias": False,
    "torch_dtype": "float32",
}
CONFIGS = (
    CONFIG,
    {
        **CONFIG,
        "model_type": "qwen3",
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    {**CONFIG, "model_type": "mistral", "sliding_window": 32, "layer_types": ["sliding_attention"]},
    {
        **CONFIG,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    {
        **CONFIG,
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "layer_types": ["sliding_attention"],
        "rope_local_base_freq": 10000.0,
    },
    {
        "model_type": "gemma3",
        "text_config": {**CONFIG, "model_type": "gemma3_text", "sliding_window": 16},
        "vision_config": {},
    },
    {**CONFIG, "quantization_config": {"quant_method": "gptq", "bits": 4}},
    {
        **CONFIG,
        "model_type": "phi3",
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 64,
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
        },
    },
    {**CONFIG, "model_type": "ministral3", "sliding_window": 16},
    {
        "model_type": "mistral3",
        "tie_word_embeddings": True,
        "text_config": {
            **CONFIG,
            "model_type": "ministral3",
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "llama_4_scaling_beta": 0.1,
            },
        },
    },
    {
        **CONFIG,
        "model_type": "gemma3_text",
        "sliding_window": None,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "linear", "factor": 2.0},
        },
    },
    {
        **CONFIG,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 0,
    },
)
CONFIG_NAMES = (
    "rope_scaling",
    "rope_parameters",
    "layer_types",
    "sliding_window",
    "sliding_window_pattern",
    "text_config",
    "quantization_config",
    "num_experts",
    "partial_rotary_factor",
    "use_sliding_window",
    "max_window_layers",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "eos_token_id",
    "mlp_bias",
    "text_config",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "llama_4_scaling_beta",
    "short_factor",
    "long_factor",
    "head_dim",
    "dtype",
)

MANIFEST_NAMES = (
    "../a",
    "freq_factors",
    "long_factors",
    "attention_factor",
    "windowed_layers",
    "x",
)


def _read_rows(source: ModelSource) -> None:
    """Read some rows of each tensor that the model has; of damaged ones it is said."""
    for name in _names(source):
        tensor = source.tensor(name)
        tensor.floats(0, min(READ_ROWS, tensor.rows))


def _names(source: ModelSource) -> list[str]:
    from picoedge.store.sources.tensors import tensor_shapes

    return list(tensor_shapes(source.config))[:40]


def _gguf(folder: Path) -> Run:
    """One input in eight is the first part of two, by its length."""
    path = folder / "m.gguf"
    parts = [folder / f"p-0000{i}-of-00002.gguf" for i in (1, 2)]
    parts[1].write_bytes(replace(SAMPLES[0], tensors=()).to_bytes())

    def run(data: bytes) -> None:
        target = path if len(data) % 8 else parts[0]
        target.write_bytes(data)
        _read_rows(GgufSource(target))

    return run


def _text_samples() -> list[bytes]:
    return [sample.to_bytes() for sample in SAMPLES]


# -- Hugging Face --------------------------------------------------------------------------------


def weights_header(config: dict[str, Any], vocabulary: int = 266) -> dict[str, Any]:
    """A safetensors header for `config`'s one layer."""
    rows, offset = {}, 0
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": [vocabulary, 64],
        "model.norm.weight": [64],
        f"{layer}input_layernorm.weight": [64],
        f"{layer}post_attention_layernorm.weight": [64],
        f"{layer}self_attn.q_proj.weight": [64, 64],
        f"{layer}self_attn.k_proj.weight": [32, 64],
        f"{layer}self_attn.v_proj.weight": [32, 64],
        f"{layer}self_attn.o_proj.weight": [64, 64],
        f"{layer}mlp.gate_proj.weight": [64, 64],
        f"{layer}mlp.up_proj.weight": [64, 64],
        f"{layer}mlp.down_proj.weight": [64, 64],
    }
    if config["model_type"] == "qwen3":
        shapes |= {f"{layer}self_attn.{n}_norm.weight": [32] for n in "qk"}
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        rows[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    return rows


def safetensors(header: bytes, nbytes: int) -> bytes:
    """A file with zeros for data."""
    return struct.pack("<Q", len(header)) + header + bytes(nbytes)


def _weights_end(header: dict[str, Any]) -> int:
    return max(int(row["data_offsets"][1]) for row in header.values())


def _safetensors_samples() -> list[bytes]:
    headers = [weights_header(CONFIG)]
    return [safetensors(to_json(header), _weights_end(header)) for header in headers]


def _mutated_safetensors(rng: Random, samples: Sequence[bytes]) -> bytes:
    header = weights_header(CONFIG)
    end = _weights_end(header)
    names = (
        "dtype",
        "shape",
        "data_offsets",
        "__metadata__",
        "F8_E4M3",
        "I64",
        "model.rotary_emb.inv_freq",
    )
    if rng.randrange(200) == 0:
        raw = b'{"__metadata__":' + crowd(rng, CROWD_BYTES) + b"}"
        return safetensors(raw, 0)
    raw = to_json(mutate_value(rng, header, names))
    data = safetensors(raw, rng.choice((end, end, end - 1, end + 64, 0)))
    return mutate_bytes(rng, data[:4096]) + data[4096:] if rng.randrange(4) == 0 else data


def _safetensors(folder: Path) -> Run:
    (folder / "config.json").write_bytes(to_json(CONFIG))

    def run(data: bytes) -> None:
        (folder / "model.safetensors").write_bytes(data)
        _read_rows(FolderSource(folder))

    return run


INDEX = {
    "metadata": {"total_size": 9},
    "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"},
}


def _index(folder: Path) -> Run:
    """The index of weights in two files, of which one is empty."""
    header = weights_header(CONFIG)
    (folder / "config.json").write_bytes(to_json(CONFIG))
    (folder / "model-1.safetensors").write_bytes(safetensors(to_json(header), _weights_end(header)))
    (folder / "model-2.safetensors").write_bytes(safetensors(b"{}", 0))

    def run(data: bytes) -> None:
        (folder / "model.safetensors.index.json").write_bytes(data)
        _read_rows(FolderSource(folder))

    return run


def _config(folder: Path) -> Run:
    header = weights_header(CONFIG)
    (folder / "model.safetensors").write_bytes(safetensors(to_json(header), _weights_end(header)))

    def run(data: bytes) -> None:
        (folder / "config.json").write_bytes(data)
        _read_rows(FolderSource(folder))

    return run


# -- packs ---------------------------------------------------------------------------------------


def _pack_files(sample: Gguf = SAMPLES[0]) -> dict[str, bytes]:
    from picoedge.store.pack.packer import pack_source

    with tempfile.TemporaryDirectory() as name:
        path, out = Path(name) / "m.gguf", Path(name) / "m.pico"
        path.write_bytes(sample.to_bytes())
        pack_source(GgufSource(path), out)
        return {str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()}


def _manifest(folder: Path) -> Run:
    """The manifest of a pack on a disk, and as a peer offers it."""
    pack = folder / "m.pico"
    pack.mkdir()
    for name, data in _pack_files().items():
        (pack / name).write_bytes(data)

    def run(data: bytes) -> None:
        (pack / MANIFEST).write_bytes(data)
        parse_manifest(data, folder / "offered")
        opened = Pack.open(pack)
        for item in opened.items()[:8]:
            assert item.name
        try:
            assert opened.final_norm is not None
            opened.norms(0)
            opened.head()
            assert opened.embedding is not None
            opened.verify()
        except PicoedgeError:
            pass

    return run


def _manifest_samples() -> list[bytes]:
    """Of tied and untied models, with scalings of several kinds."""
    return [_pack_files(SAMPLES[i])[MANIFEST] for i in (0, 7, 8, 10, 11, 12)]


_SOURCES = "store/sources/"
FILES = (
    Target(
        "index.json",
        _index,
        **of_values([INDEX], ("weight_map", "model.safetensors")),
        modules=(f"{_SOURCES}huggingface.py:_indexed_files",),
    ),
    Target(
        "gguf",
        _gguf,
        _text_samples,
        mutated_gguf,
        (f"{_SOURCES}gguf.py", f"{_SOURCES}gguf_source.py"),
        weight=4,
    ),
    Target(
        "safetensors",
        _safetensors,
        _safetensors_samples,
        _mutated_safetensors,
        (
            f"{_SOURCES}huggingface.py:_raw_tensors,_readable,_prefix,_head_name",
            "store/safetensors.py:read_header,_entry,require_floats",
        ),
        weight=4,
    ),
    Target(
        "config.json",
        _config,
        **of_values(CONFIGS, CONFIG_NAMES),
        modules=(f"{_SOURCES}hf_config.py",),
        weight=4,
    ),
    Target(
        "manifest",
        _manifest,
        _manifest_samples,
        lambda rng, given: mutate_json(rng, rng.choice(given), MANIFEST_NAMES),
        (
            "store/pack/manifest.py:parse_manifest,_manifest,_config,_layout,_geometry,_shard,_items",
            "store/shards.py:inventory,_item,is_file_name,is_count",
        ),
        weight=2,
    ),
)
