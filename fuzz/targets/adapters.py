"""LoRA adapters of strangers: `adapter_config.json` and `adapter_model.safetensors` together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutate import mutate_bytes, mutate_text, mutate_value, to_json, written
from fuzz.target import Run, Target
from fuzz.targets.files import safetensors
from picoedge.config import ModelConfig
from picoedge.store.adapter_refusals import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from picoedge.store.adapters import AdapterFacts, read_adapter, write_adapter
from picoedge.store.sources.adapter_matrices import canonical_matrices

# An input: 4 bytes of the config's length, the config, the weights' file.
_LENGTH = 4
_HIDDEN, _INNER, _ROWS = 32, 48, {"q": 32, "k": 16, "v": 16}

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "/home/someone/model",
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.05,
    "bias": "none",
    "target_modules": ["q_proj", "down_proj"],
    "modules_to_save": None,
    "use_rslora": False,
    "init_lora_weights": True,
}
PATTERNED = {
    **CONFIG,
    "target_modules": "all-linear",
    "use_rslora": True,
    "rank_pattern": {"down_proj": 3},
    "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 1.5, "layers.1.mlp.down_proj": 8},
    "init_lora_weights": "gaussian",
}
CONFIG_NAMES = (
    "use_dora", "modules_to_save", "fan_in_fan_out", "lora_bias", "bias", "layer_replication",
    "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "use_qalora",
    "rank_pattern", "alpha_pattern", "use_rslora", "layers_to_transform", "init_lora_weights",
    "base_model_name_or_path", "pissa", "use_something_new", "r", "lora_alpha",
)  # fmt: skip
TENSOR_NAMES = (
    "lora_A", "lora_B", ".default", ".weight", "base_model.model.", "model.", "language_model.",
    "layers.", "layers.4095.", "layers.4096.", "self_attn.", "mlp.", "q_proj", "gate_proj",
    "lora_magnitude_vector", "lora_embedding_A", "embed_tokens", "lm_head", "vision_tower.",
    "experts.0.", "modules_to_save", "bias", "__metadata__", "dtype", "shape", "data_offsets",
    "BF16", "F16", "F64", "I8",
)  # fmt: skip
LAYERS = ("layers.1.", "layers.2.", "layers.01.", "layers.4095.", "layers.4096.", "layers.99999.")


def _pairs(names: dict[str, tuple[int, int, int]], layers: int = 2) -> dict[str, list[int]]:
    """Shapes by tensor name; `names`: rows, columns and rank by module."""
    found = dict[str, list[int]]()
    for layer in range(layers):
        for module, (rows, cols, rank) in names.items():
            stem = f"base_model.model.model.layers.{layer}.{module}.lora_"
            found |= {f"{stem}A.weight": [rank, cols], f"{stem}B.weight": [rows, rank]}
    return found


def _header(shapes: dict[str, list[int]], dtype: str) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, size = 0, 4 if dtype == "F32" else 2
    for name, (rows, cols) in shapes.items():
        end = at + rows * cols * size
        header[name] = {"dtype": dtype, "shape": [rows, cols], "data_offsets": [at, end]}
        at = end
    return header


def _joined(config: bytes, header: bytes, nbytes: int) -> bytes:
    """An input. Its values are the same small numbers, as f32, f16 and bf16."""
    values = bytes.fromhex("003c003c") * (nbytes // 4) + b"\0" * (nbytes % 4)
    weights = safetensors(header, 0) + values
    return len(config).to_bytes(_LENGTH, "little") + config + weights


def _parts(data: bytes) -> tuple[bytes, bytes]:
    """The two files of an input."""
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    return data[_LENGTH:end], data[end:]


@cache
def _kinds() -> tuple[tuple[dict[str, Any], dict[str, Any]], ...]:
    """Config and header of each sample."""
    rows = sum(_ROWS.values())
    plain = {"self_attn.q_proj": (_ROWS["q"], _HIDDEN, 2), "mlp.down_proj": (_HIDDEN, _INNER, 2)}
    wide = {**plain, "mlp.down_proj": (_HIDDEN, _INNER, 3)}
    fused = {
        "self_attn.qkv_proj": (rows, _HIDDEN, 2),
        "mlp.gate_up_proj": (2 * _INNER, _HIDDEN, 2),
    }
    return (
        (CONFIG, _header(_pairs(plain), "F32")),
        (PATTERNED, _header(_pairs(wide), "BF16")),
        (CONFIG, _header(_pairs(fused), "F16")),
    )


def _end(header: dict[str, Any]) -> int:
    ends = [row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"]
    return int(max(ends))


def _samples() -> list[bytes]:
    return [_joined(to_json(config), to_json(header), _end(header)) for config, header in _kinds()]


def _mutated(rng: Random, samples: Sequence[bytes]) -> bytes:
    """Mostly one of the two files is changed, and by its meaning."""
    what = rng.randrange(8)
    if what == 0:
        return mutate_bytes(rng, rng.choice(samples), samples)
    config, header = rng.choice(_kinds())
    end, raw = _end(header), to_json(header)
    if what < 4:
        return _joined(written(rng, mutate_value(rng, config, CONFIG_NAMES)), raw, end)
    if what < 6:
        name = rng.choice(list(header))
        other = mutate_text(rng, name, TENSOR_NAMES)
        if rng.randrange(2):
            other = name.replace("layers.0.", rng.choice(LAYERS))
        changed = {other if key == name else key: row for key, row in header.items()}
    else:
        changed = mutate_value(rng, header, TENSOR_NAMES)
    size = rng.choice((end, end, end, end - 1, end + 64, 0))
    return _joined(to_json(config), to_json(changed), size)


def _model(architecture: str) -> ModelConfig:
    return ModelConfig(
        architecture, hidden_size=_HIDDEN, intermediate_size=_INNER, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, vocab_size=64,
        max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=1e4, tie_word_embeddings=True,
    )  # fmt: skip


def _adapter_files(folder: Path) -> Run:
    """Read an adapter, mostly for its kind of model; one in four is written, and read again."""
    models = [_model("llama"), _model("phi3")]
    given, again = folder / "given", folder / "again"
    given.mkdir()

    def run(data: bytes) -> None:
        config, weights = _parts(data)
        (given / ADAPTER_CONFIG).write_bytes(config)
        (given / ADAPTER_WEIGHTS).write_bytes(weights)
        adapter = read_adapter(given)
        facts = AdapterFacts.of(given, adapter).to_json()
        json.dumps(facts).encode()
        assert facts["bytes"] == len(config) + len(weights)
        assert adapter.parameters > 0
        if len(data) % 4 == 0:
            write_adapter(again, adapter)
            assert read_adapter(again).identity == adapter.identity
        is_fused = any(name in ("qkv_proj", "gate_up_proj") for name in adapter.targets)
        is_for_phi = is_fused != (len(data) % 7 == 0)
        assert canonical_matrices(adapter, models[is_for_phi])

    return run


ADAPTERS = (
    Target(
        "adapter-files",
        _adapter_files,
        _samples,
        _mutated,
        (
            "store/adapters.py",
            "store/adapter_refusals.py:refuse_kinds,refused_tensor",
            "store/sources/adapter_matrices.py:check_shapes,canonical_matrices",
        ),
        weight=4,
    ),
)
