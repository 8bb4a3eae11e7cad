"""Adapters that are not supported, each told for what it is, and what to do with it."""

from __future__ import annotations

import re
from pathlib import Path

from picoedge.errors import ModelError, UnsupportedError
from picoedge.fields import Fields

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_TAKE = "take a LoRA adapter of the projections q, k, v, o, gate, up and down alone"
_MERGE = "merge it once with peft (merge_and_unload, save_pretrained) and pack that model"
_PLAIN = "train a plain LoRA"
_KIND = re.compile(r"[\w.-]{1,200}", re.ASCII)
_MOST_SUBFOLDERS = 1000

# Fields that say how an adapter was trained, or what is in it already by its tensors' names.
_OF_TRAINING = frozenset({
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules",
    "use_rslora", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern",
    "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "velora_config", "monteclora_config", "qalora_group_size", "runtime_config",
    "ensure_weight_tying", "init_lora_weights", "bias", "merge_weights", "enable_lora",
})  # fmt: skip
# Fields that change what is computed, where they are set.
_REFUSED = {
    "use_dora": ("DoRA (weights divided by their length)", "train it with use_dora=False"),
    "modules_to_save": ("whole matrices beside its low-rank ones (modules_to_save)", _MERGE),
    "fan_in_fan_out": ("transposed matrices (fan_in_fan_out)", "they are GPT-2's; " + _TAKE),
    "lora_bias": ("biases (lora_bias)", "train it with lora_bias=False"),
    "layer_replication": ("layers that are used twice (layer_replication)", _MERGE),
    "trainable_token_indices": ("rows of the embedding (trainable_token_indices)", _MERGE),
    "target_parameters": ("matrices of experts (target_parameters)", _TAKE),
    "alora_invocation_tokens": ("an activation by certain tokens (aLoRA)", _PLAIN),
    "use_qalora": ("pooled inputs (QA-LoRA)", _PLAIN),
    "use_bdlora": ("block-diagonal matrices (BD-LoRA)", _PLAIN),
    "arrow_config": ("a router over adapters (Arrow)", "give one of its adapters"),
    "kasa_config": ("singular values (KaSA)", _PLAIN),
}
# Initialisations that move a part of the base's weights into the adapter.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Tensors by a part of their names, the more telling parts first.
_TENSORS = (
    ("lora_magnitude_vector", "DoRA (weights divided by their length)",
     "train it with use_dora=False"),
    ("modules_to_save", "whole matrices beside its low-rank ones", _MERGE),
    ("lora_embedding_", "low-rank matrices of the embedding", _MERGE),
    ("embed_tokens", "the embedding, which PEFT saves where tokens were added", _MERGE),
    ("lm_head", "the head", _MERGE),
    ("vision", "the half that sees images", _TAKE),
    ("visual", "the half that sees images", _TAKE),
    (".experts.", "experts", _TAKE),
    (".bias", "trained biases", 'train it with bias="none"'),
)  # fmt: skip


def refuse_kinds(fields: Fields) -> None:
    """Raise UnsupportedError where an `adapter_config.json` sets what is not supported."""
    where, values = fields.where, fields.values
    if "peft_type" not in values and "fine_tune_type" in values:
        raise UnsupportedError(
            f"{where}: this is an adapter of MLX, not of PEFT",
            "make one model of both with mlx_lm.fuse --dequantize, and pack that",
        )
    kind = fields.text("peft_type", 64)
    if kind != "LORA":
        shown = kind if _KIND.fullmatch(kind) else "another kind"
        raise UnsupportedError(f"{where}: this is a PEFT adapter of kind {shown}, not LORA", _TAKE)
    for name, (what, remedy) in _REFUSED.items():
        if values.get(name):
            raise UnsupportedError(f"{where}: the adapter has {what}, not supported", remedy)
    if values.get("bias", "none") not in ("none", None):
        raise UnsupportedError(
            f"{where}: the adapter has trained biases (bias), not supported",
            'train it with bias="none"',
        )
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise UnsupportedError(
            f"{where}: the adapter is for weights that its start has changed (init_lora_weights)",
            "save it once more with peft's path_initial_model_for_weight_conversion",
        )
    known = _OF_TRAINING | _REFUSED.keys()
    unknown = next((name for name, value in values.items() if value and name not in known), None)
    if unknown is not None:
        raise UnsupportedError(
            f"{where}: {unknown[:64]!r} is set, and what it changes is not known",
            "is the adapter of a newer PEFT? take the field out if it changes nothing",
        )


def refused_tensor(path: Path, name: str) -> UnsupportedError:
    """The error for a tensor that is no A or B of a projection."""
    for part, what, remedy in _TENSORS:
        if part in name:
            return UnsupportedError(
                f"{path}: the adapter has {what} (tensor {name[:200]!r}), not supported", remedy
            )
    return UnsupportedError(
        f"{path}: tensor {name[:200]!r} belongs to nothing that is supported", _TAKE
    )


def refuse_pickle(folder: Path) -> None:
    """Raise UnsupportedError where an adapter has its matrices as a pickle alone."""
    if not (folder / ADAPTER_WEIGHTS).is_file() and (folder / "adapter_model.bin").exists():
        raise UnsupportedError(
            f"{folder} holds the adapter as a PyTorch pickle, which can run code and is not read",
            "load it once with peft and save_pretrained() it, which writes safetensors",
        )


def is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter, and no model that has one beside it."""
    return (folder / ADAPTER_CONFIG).is_file() and not any(folder.glob("model*.safetensors"))


def no_adapter(path: Path) -> ModelError:
    """The error for a path that is no folder with an `adapter_config.json`."""
    a_folder = f"an adapter is a folder with {ADAPTER_CONFIG}"
    if not path.exists():
        return ModelError(f"{path} does not exist", a_folder)
    if path.suffix == ".gguf":
        return UnsupportedError(f"{path} is no adapter in PEFT's format", f"{a_folder}: take that")
    if not path.is_dir():
        there = (path.parent / ADAPTER_CONFIG).is_file()
        hint = f"give its folder: {path.parent}" if there else a_folder
        return ModelError(f"{path} is no adapter", hint)
    if path.name.endswith(".pico"):
        return ModelError(f"{path} is no adapter", a_folder)
    if inside := _adapter_inside(path):
        return ModelError(f"{path} holds no adapter itself", f"did you mean {inside}?")
    return ModelError(
        f"{path} holds no adapter",
        f"a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, as PEFT and `picoedge finetune` "
        "write it",
    )


def _adapter_inside(folder: Path) -> Path | None:
    """An adapter in a subfolder: a named one of PEFT's, or a checkpoint of transformers' Trainer.

    Of several the last by name and length: checkpoint-1000, not checkpoint-500.
    """
    try:
        with_config = [
            path
            for path, _ in zip(folder.iterdir(), range(_MOST_SUBFOLDERS), strict=False)
            if (path / ADAPTER_CONFIG).is_file()
        ]
    except OSError:
        return None
    return max(with_config, key=lambda path: (len(path.name), path.name), default=None)
