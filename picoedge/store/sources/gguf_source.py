"""GGUF source: config (keys: ggml's `docs/gguf.md`) and tensors of a GGUF file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.config import ModelConfig, RopeScaling, model_sampling
from picoedge.errors import ModelError, UnsupportedError
from picoedge.files import naming, source_fingerprint
from picoedge.store.sources.gguf import read_gguf
from picoedge.store.sources.rope import longrope, mscale, part_turned, stretched, yarn
from picoedge.store.sources.tensors import ModelSource, SourceTensor

# Architectures of GGUFs and ours; of those with images, this is the text's part.
_FAMILIES = {
    "llama": "llama", "qwen2": "qwen2", "qwen2vl": "qwen2", "qwen3": "qwen3", "qwen3vl": "qwen3",
    "gemma3": "gemma3", "phi3": "phi3",
}  # fmt: skip
_SUPPORTED = tuple(_FAMILIES)
# Of files that leave it out, as Ollama's own of Gemma 3 do.
_DEFAULT_EPS = {"gemma3": 1e-6, "qwen2": 1e-6, "qwen3": 1e-6}
_OLLAMA_KEYS = ("mm.tokens_per_image", "rope.global.freq_base", "rope.local.freq_base",
                "vision.block_count")  # fmt: skip
_GEMMA_LONG = 131072  # context of the Gemma 3 models whose rope is stretched, by 8
_GEMMA_27B_LAYERS = 62
_GEMMA_PATTERN = 6
# The forward pass ignores these keys, so a value would make it silently wrong.
_REFUSED = (
    "expert_count", "attn_logit_softcapping", "final_logit_softcapping", "logit_scale",
    "embedding_scale", "residual_scale", "attention.max_alibi_bias", "attention.clamp_kqv",
    "attention.q_lora_rank", "attention.kv_lora_rank", "ssm.state_size",
)  # fmt: skip
GGUF_LAYER_NAMES = {
    "q": "attn_q.weight", "k": "attn_k.weight", "v": "attn_v.weight", "o": "attn_output.weight",
    "gate": "ffn_gate.weight", "up": "ffn_up.weight", "down": "ffn_down.weight",
    "q_bias": "attn_q.bias", "k_bias": "attn_k.bias", "v_bias": "attn_v.bias",
    "input_norm": "attn_norm.weight", "pre_ffn_norm": "ffn_norm.weight",
    "post_attention_norm": "post_attention_norm.weight",
    "post_ffn_norm": "post_ffw_norm.weight",
    "q_norm": "attn_q_norm.weight", "k_norm": "attn_k_norm.weight",
}  # fmt: skip
GGUF_NAMES = {
    "embed": "token_embd.weight",
    "head": "output.weight",
    "final_norm": "output_norm.weight",
}
_FUSED = {
    **dict.fromkeys(("q", "k", "v"), "attn_qkv.weight"),
    **dict.fromkeys(("gate", "up"), "ffn_up.weight"),
}
GGUF_PAIRED = ("q", "k", "q_bias", "k_bias")
ROPE_FREQS, _LONG, _SHORT = (
    "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight",
)  # fmt: skip
_SAMPLING = "general.sampling."
_MAX_FREQS = 1 << 16
# Written by old converters, redundant with the config; rope's divisors, which are read apart.
_HARMLESS = re.compile(
    r"rope_freqs\.weight|rope_factors_(long|short)\.weight|"
    r"blk\.\d+\.(attn_rot_embd|attn_rope_freqs|rope_freqs)(\.weight)?"
)
_OTHER_SENSES = re.compile(r"(v|a|mm)\..*")  # images, sound and what joins them to the text
_PART_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")


class _Keys:
    """Checked look-ups of `{architecture}.{name}`; errors name the key."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str, path: str) -> None:
        self._metadata, self._prefix, self._path = metadata, architecture, path

    def get(self, name: str) -> Any:
        """The unchecked value, or None."""
        return self._metadata.get(f"{self._prefix}.{name}")

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer, or a list that repeats one. Raises ModelError."""
        value = self.get(name)
        if isinstance(value, list) and value:
            if any(v != value[0] for v in value):
                raise UnsupportedError(
                    f"{self._path}: {self._prefix}.{name} differs from layer to layer",
                    "supported: models whose layers have one shape",
                )
            value = value[0]
        value = default if value is None else value
        if not isinstance(value, int) or not 0 < value < 2**31:
            raise self.bad(name, value)
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        """A finite number above zero. Raises ModelError."""
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise self.bad(name, value)
        return float(value)

    def bad(self, name: str, value: object) -> ModelError:
        """The error for a value that is missing or wrong."""
        what = "is missing" if value is None else f"is {value!r}"
        return ModelError(f"{self._path}: {self._prefix}.{name} {what}", "the file is damaged")


def gguf_config(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]],
    divisors: Mapping[str, tuple[float, ...]], path: str,
) -> ModelConfig:  # fmt: skip
    """Config of a GGUF with tensors of these `shapes`; `divisors`: of its frequencies, by tensor.

    Raises UnsupportedError on an unsupported architecture or key, ModelError on a missing key.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _FAMILIES:
        raise UnsupportedError(
            f"{path}: architecture {architecture!r} is not supported",
            f"supported: {', '.join(_SUPPORTED)}",
        )
    keys = _Keys(metadata, architecture, path)
    _refuse(keys, architecture, path)
    heads, hidden = keys.size("attention.head_count"), keys.size("embedding_length")
    family_name = _FAMILIES[architecture]
    usual = 256 if family_name == "gemma3" else hidden // heads
    head_dim = keys.size("attention.key_length", usual)
    _check_head_dim(keys, head_dim, architecture, path)
    _check_layers(keys.size("block_count"), len(shapes), path)
    theta = keys.positive("rope.freq_base", 10_000.0)
    family: dict[str, Any] = {"rope_local_theta": theta}
    if family_name == "gemma3":
        theta = keys.positive("rope.freq_base", keys.positive("rope.global.freq_base", 1e6))
        family = _gemma(keys, hidden, heads)
    elif keys.get("attention.scale"):
        family["attention_scale"] = keys.positive("attention.scale")
    turned = keys.size("rope.dimension_count", head_dim)
    if not 0 < turned <= head_dim or turned % 2:
        raise keys.bad("rope.dimension_count", turned)
    scaling = _rope_scaling(keys, divisors, theta, head_dim, path)
    if turned < head_dim and scaling.kind not in ("none", "longrope"):
        raise UnsupportedError(
            f"{path}: rope scaling {scaling.kind!r} of a part of a head is not supported",
            "supported: longrope",
        )
    _check_divisors(divisors, turned, path)
    scaling = part_turned(scaling, head_dim, turned, theta)
    return ModelConfig(
        architecture=family_name,
        hidden_size=hidden,
        intermediate_size=keys.size("feed_forward_length"),
        num_hidden_layers=keys.size("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=keys.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=_vocab_size(shapes, path),
        max_position_embeddings=keys.size("context_length"),
        rms_norm_eps=keys.positive(
            "attention.layer_norm_rms_epsilon", _DEFAULT_EPS.get(family_name)
        ),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings="output.weight" not in shapes,
        qkv_bias="blk.0.attn_q.bias" in shapes,
        qk_norm=family_name in ("qwen3", "gemma3"),
        **family,
    )


def _vocab_size(shapes: Mapping[str, tuple[int, ...]], path: str) -> int:
    embed = shapes.get("token_embd.weight")
    if embed is None or len(embed) != 2:
        raise ModelError(f"{path}: tensor token_embd.weight is missing", "the file is incomplete")
    return embed[0]


def _check_layers(layers: int, tensors: int, path: str) -> None:
    if layers > tensors:
        raise ModelError(f"{path}: {layers} layers in {tensors} tensors", "the file is damaged")


def _refuse(keys: _Keys, architecture: str, path: str) -> None:
    refused = [name for name in _REFUSED if keys.get(name)]
    refused = [name for name in refused if not (name.endswith("_scale") and keys.get(name) == 1)]
    if keys.get("attention.causal") is False:
        refused.append("attention.causal")
    if refused:
        raise UnsupportedError(
            f"{path}: {architecture}.{refused[0]} is not supported",
            "supported: dense causal decoders of the architectures " + ", ".join(_SUPPORTED),
        )


def _check_head_dim(keys: _Keys, head_dim: int, architecture: str, path: str) -> None:
    partial = architecture == "phi3"
    for name in ("attention.value_length", *(() if partial else ("rope.dimension_count",))):
        if keys.size(name, head_dim) != head_dim:
            raise UnsupportedError(
                f"{path}: {name} is {keys.size(name)} where heads have {head_dim}",
                "supported: heads of one size, rotated as a whole",
            )


def _gemma(keys: _Keys, hidden: int, heads: int) -> dict[str, Any]:
    layers = keys.size("block_count")
    # Only the 27B model scales by hidden / heads, and its GGUF has no key for it.
    scale = (hidden / heads) ** -0.5 if layers == _GEMMA_27B_LAYERS else 0.0
    # Without a window all layers see all positions, by the global base, as in llama.cpp.
    window = keys.size("attention.sliding_window") if keys.get("attention.sliding_window") else 0
    return {
        "rope_local_theta": keys.positive(
            "rope.freq_base_swa", keys.positive("rope.local.freq_base", 10_000.0)
        ),
        "hidden_act": "gelu_tanh",
        "sandwich_norm": True,
        "embed_scale": math.sqrt(hidden),
        "attention_scale": scale,
        "sliding_window": window,
        "windowed_layers": _windowed(keys, layers) if window else (),
    }


def _windowed(keys: _Keys, layers: int) -> tuple[int, ...]:
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return tuple(i for i, windowed in enumerate(pattern[:layers]) if windowed)
    period = keys.size("attention.sliding_window_pattern", _GEMMA_PATTERN)
    return tuple(i for i in range(layers) if (i + 1) % period)


def _rope_scaling(
    keys: _Keys, divisors: Mapping[str, tuple[float, ...]], theta: float, head_dim: int, path: str
) -> RopeScaling:
    kind, freqs = keys.get("rope.scaling.type"), divisors.get(ROPE_FREQS, ())
    context = keys.size("context_length")
    if kind is None and not keys.get("rope.scaling.factor") and _is_stretched_gemma(keys, context):
        return RopeScaling(kind="linear", factor=8.0)
    original = keys.size("rope.scaling.original_context_length", context)
    if _LONG in divisors and _SHORT in divisors:
        attention = keys.positive("rope.scaling.attn_factor", 1.0)
        short, long = divisors[_SHORT], divisors[_LONG]
        return longrope(short, long, context, original, attention)
    stretch = 1.0
    if kind != "none" and (keys.get("rope.scaling.factor") or keys.get("rope.scale_linear")):
        name = "rope.scaling.factor" if keys.get("rope.scaling.factor") else "rope.scale_linear"
        stretch = keys.positive(name)
    if kind == "yarn":
        found = _yarn(keys, theta, head_dim, stretch, original)
        return stretched(found, freqs) if freqs else found
    if kind not in (None, "none", "linear"):
        raise UnsupportedError(
            f"{path}: rope scaling {str(kind)[:40]!r} is not supported",
            "supported: none, linear, llama3, yarn, and longrope with its divisors",
        )
    if freqs:  # both are divisors
        return RopeScaling(kind="llama3", freq_factors=tuple(stretch * f for f in freqs))
    return RopeScaling() if stretch == 1.0 else RopeScaling(kind="linear", factor=stretch)


def _is_stretched_gemma(keys: _Keys, context: int) -> bool:
    """Ollama's files of Gemma 3 from 4B on do not say that their rope is stretched."""
    return context >= _GEMMA_LONG and any(keys.get(name) is not None for name in _OLLAMA_KEYS)


def _yarn(keys: _Keys, theta: float, head_dim: int, factor: float, original: int) -> RopeScaling:
    if theta <= 1:
        raise keys.bad("rope.freq_base", theta)
    weight = keys.get("rope.scaling.yarn_log_multiplier")
    attention = mscale(factor)
    if weight:
        everywhere = keys.positive("rope.scaling.yarn_log_multiplier")
        attention = mscale(factor) / mscale(factor, everywhere)
    return yarn(
        head_dim, theta, factor, original,
        beta_fast=keys.positive("rope.scaling.yarn_beta_fast", 32),
        beta_slow=keys.positive("rope.scaling.yarn_beta_slow", 1),
        attention_factor=attention * keys.positive("rope.scaling.attn_factor", 1.0),
    )  # fmt: skip


class GgufSource(ModelSource):
    """A GGUF file, or all parts of a split one."""

    kind = "gguf"

    def __init__(self, path: Path) -> None:
        file = read_gguf(path)
        self.name = _PART_SUFFIX.sub("", path.stem)
        self.metadata = file.metadata
        self.fingerprint = source_fingerprint(file.paths)
        stored = {n: t for n, t in file.tensors.items() if not _OTHER_SENSES.fullmatch(n)}
        self.passed_over = len(file.tensors) - len(stored)
        shapes = {t.name: t.shape for t in stored.values()}
        freqs = {n: _divisors(stored[n]) for n in (ROPE_FREQS, _LONG, _SHORT) if n in stored}
        with naming(path):
            config = gguf_config(file.metadata, shapes, freqs, str(path))
        self._names_of_fused = _FUSED if config.architecture == "phi3" else {}
        super().__init__(path, config, stored, self._name_in_file, _HARMLESS)
        self.sampling = model_sampling(
            {
                key.removeprefix(_SAMPLING): file.metadata[key]
                for key in file.metadata
                if key.startswith(_SAMPLING)
            }
        )

    def _name_in_file(self, name: str) -> str:
        if name in GGUF_NAMES:
            return GGUF_NAMES[name]
        _, layer, kind = name.split(".")
        return f"blk.{layer}.{(GGUF_LAYER_NAMES | self._names_of_fused)[kind]}"

    def tensor(self, name: str) -> SourceTensor:
        """See `ModelSource.tensor`."""
        paired = self.config.architecture == "llama" and name.rpartition(".")[2] in GGUF_PAIRED
        return replace(super().tensor(name), paired_head=self.config.head_dim if paired else 0)


def _check_divisors(divisors: Mapping[str, tuple[float, ...]], turned: int, path: str) -> None:
    for name, values in divisors.items():
        if len(values) != turned // 2:
            raise ModelError(f"{path}: {name} has {len(values)} values", "the file is damaged")


def _divisors(stored: SourceTensor) -> tuple[float, ...]:
    """The divisors of frequencies in a tensor."""
    n = math.prod(stored.shape)
    tensor = replace(stored, shape=(n,))
    if n > _MAX_FREQS or not np.all(tensor.vector() > 0):
        raise ModelError(f"{stored.path}: tensor {stored.name} is not a list of divisors")
    return tuple(tensor.vector().tolist())
