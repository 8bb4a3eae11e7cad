"""Rope scalings of model files, turned into divisors of the rotary frequencies.

Formulas as in `transformers` (modeling_rope_utils) and llama.cpp (ggml_rope_yarn): YaRN,
arXiv 2309.00071; LongRoPE, arXiv 2402.13753; "dynamic" NTK changes nothing within the trained
context, which is the largest that a session has.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from picoedge.config import UNTURNED, RopeScaling
from picoedge.errors import UnsupportedError
from picoedge.fields import Fields

_MAX_DIVISORS = 1 << 16
SUPPORTED = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
# Rope of images and video besides text (Qwen2-VL): of a text alone it is the plain one.
_PLAIN = ("default", "none", "mrope", "dynamic")


def yarn(
    head_dim: int,
    theta: float,
    factor: float,
    original: float,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    attention_factor: float | None = None,
) -> RopeScaling:
    """YaRN: dimensions that turn often are kept, slow ones divided by `factor`, a ramp between.

    `original`: the context the model was trained with; `attention_factor` None: the paper's.
    """
    if head_dim > 2 * _MAX_DIVISORS or theta <= 1:
        what = f"YaRN over {head_dim} dimensions with a base of {theta:g} is not supported"
        raise UnsupportedError(what, "is the file's config complete and sound?")
    low, high = (_turning_dim(head_dim, theta, original, turns) for turns in (beta_fast, beta_slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = (high - low) or 0.001
    ramp = [min(max((i - low) / width, 0.0), 1.0) for i in range(head_dim // 2)]
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_max_position_embeddings=int(original),
        freq_factors=tuple(1.0 / (1.0 - r + r / factor) for r in ramp),
        attention_factor=mscale(factor) if attention_factor is None else attention_factor,
    )


def _turning_dim(head_dim: int, theta: float, original: float, turns: float) -> float:
    """The pair of dimensions that turns so often within the trained context."""
    return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))


def mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's factor of queries and keys."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def longrope(
    short: tuple[float, ...], long: tuple[float, ...], largest: float, original: float,
    attention_factor: float | None = None, factor: float | None = None,
) -> RopeScaling:  # fmt: skip
    """LongRoPE: listed divisors, `short` within the `original` context and `long` beyond it."""
    stretch = factor or largest / original
    if attention_factor is None:
        grown = 1 + math.log(stretch) / math.log(original) if stretch > 1 and original > 1 else 1.0
        attention_factor = math.sqrt(grown)
    return RopeScaling(
        kind="longrope",
        factor=max(stretch, 1e-6),
        original_max_position_embeddings=int(original),
        freq_factors=short,
        long_factors=long,
        attention_factor=attention_factor,
    )


def rope_fields(fields: Fields, layer_type: str) -> Fields | None:
    """The fields of the rope of layers of this type, as `transformers` finds them; None without.

    `rope_scaling` goes before `rope_parameters`, which may have an object for each type of layer.
    """
    found: dict[str, Any] = {}
    prefix = fields.prefix
    for key in ("rope_parameters", "rope_scaling"):
        if not fields.values.get(key) and not isinstance(fields.values.get(key), int):
            continue
        rope = fields.object(key)
        if any(isinstance(value, dict) for value in rope.values.values()):
            if not rope.values.get(layer_type):
                continue
            rope = rope.object(layer_type)
        elif layer_type == "sliding_attention":
            continue
        found, prefix = {**found, **rope.values}, rope.prefix
    return Fields(found, fields.where, fields.error, fields.hint, prefix) if found else None


def rope_kind(rope: Fields, architecture: str) -> str:
    """The type of a rope; Phi-3's first files called LongRoPE by other names."""
    kind = rope.get("rope_type", str, rope.get("type", str, "default"))
    return "longrope" if kind == "su" or (kind == "yarn" and architecture == "phi3") else kind


def scaling_of(
    fields: Fields, rope: Fields, architecture: str, theta: float, rotary_dim: int
) -> RopeScaling:
    """The scaling that a rope of a `config.json` describes.

    Raises UnsupportedError on an unknown type, ModelError on a missing or wrong number.
    """
    kind = rope_kind(rope, architecture)
    if kind in _PLAIN:
        return RopeScaling()
    if kind == "linear":
        return RopeScaling(kind="linear", factor=rope.positive("factor"))
    largest = fields.positive("max_position_embeddings")
    inner = rope.positive("original_max_position_embeddings", largest)
    original = fields.positive("original_max_position_embeddings", inner)
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=rope.positive("factor"),
            low_freq_factor=rope.positive("low_freq_factor"),
            high_freq_factor=rope.positive("high_freq_factor"),
            original_max_position_embeddings=int(original),
        )
    if kind == "yarn":
        return _yarn_of(rope, theta, rotary_dim, largest, original)
    if kind == "longrope":
        short, long = (_divisors(rope, f"{name}_factor", rotary_dim) for name in ("short", "long"))
        attention, factor = _optional(rope, "attention_factor"), _optional(rope, "factor")
        return longrope(short, long, largest, original, attention, factor)
    raise UnsupportedError(
        f"{rope.where}: {rope.prefix}rope scaling {kind[:40]!r} is not supported",
        f"supported: {', '.join(SUPPORTED)}",
    )


def _yarn_of(
    rope: Fields, theta: float, rotary_dim: int, largest: float, original: float
) -> RopeScaling:
    if theta <= 1:
        raise rope.fault("rope_theta", "above 1")
    factor = rope.positive("factor", largest / original)
    attention = _optional(rope, "attention_factor")
    scale, everywhere = _optional(rope, "mscale"), _optional(rope, "mscale_all_dim")
    if attention is None and scale and everywhere:
        attention = mscale(factor, scale) / mscale(factor, everywhere)
    return yarn(
        rotary_dim, theta, factor, original,
        beta_fast=rope.positive("beta_fast", 32), beta_slow=rope.positive("beta_slow", 1),
        truncate=rope.get("truncate", bool, True), attention_factor=attention,
    )  # fmt: skip


def _optional(rope: Fields, name: str) -> float | None:
    return None if not rope.values.get(name) else rope.positive(name)


def _divisors(rope: Fields, name: str, rotary_dim: int) -> tuple[float, ...]:
    values = rope.array(name, _MAX_DIVISORS)
    if len(values) != rotary_dim // 2:
        raise rope.fault(name, f"a list of {rotary_dim // 2} divisors")
    numbered = Fields({str(i): v for i, v in enumerate(values)}, rope.where, rope.error, rope.hint)
    return tuple(numbered.positive(str(i)) for i in range(len(values)))


def part_turned(scaling: RopeScaling, head_dim: int, rotary_dim: int, theta: float) -> RopeScaling:
    """The scaling of whole heads of which `rotary_dim` dimensions turn: its divisors, and UNTURNED.

    The pairs that turn come first (`turned_order`), with the frequencies of a head of that size.
    """
    if rotary_dim == head_dim:
        return scaling
    pairs = range(rotary_dim // 2)
    own = tuple(theta ** (2 * i / rotary_dim - 2 * i / head_dim) for i in pairs)
    rest = (UNTURNED,) * (head_dim // 2 - len(own))

    def whole(divisors: tuple[float, ...]) -> tuple[float, ...]:
        return (*(a * b for a, b in zip(own, divisors, strict=True)), *rest)

    short = scaling.freq_factors or (max(scaling.factor, 1.0),) * len(own)
    long = whole(scaling.long_factors) if scaling.long_factors else ()
    kind = scaling.kind if scaling.freq_factors else "none"
    return replace(scaling, kind=kind, freq_factors=whole(short), long_factors=long)


def turned_order(head_dim: int, rotary_dim: int) -> tuple[int, ...]:
    """Rows of a head so that pair i is rows i and i + head_dim / 2, the pairs that turn first."""
    half, turned = head_dim // 2, rotary_dim // 2
    rest = half - turned
    first = [*range(turned), *range(rotary_dim, rotary_dim + rest)]
    second = [*range(turned, rotary_dim), *range(rotary_dim + rest, head_dim)]
    return (*first, *second)


def stretched(scaling: RopeScaling, by: tuple[float, ...]) -> RopeScaling:
    """The scaling with each of its divisors multiplied by another."""
    pairs = zip(scaling.freq_factors, by, strict=True)
    return replace(scaling, freq_factors=tuple(a * b for a, b in pairs))
