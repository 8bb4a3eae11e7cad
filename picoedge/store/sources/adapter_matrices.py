"""An adapter's matrices under a model's canonical names, checked against its config; and back.

Phi keeps q, k and v, and gate and up, in one matrix each, and so do adapters of it: parts share A
and have some rows of B. Where only a part of a head is rotated its rows have another order here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from picoedge.config import UNTURNED, ModelConfig
from picoedge.errors import ModelError
from picoedge.kernels.arrays import F32
from picoedge.store.adapters import Adapter
from picoedge.store.sources.rope import turned_order
from picoedge.store.sources.tensors import tensor_shapes

_FUSED = {"qkv_proj": ("q", "k", "v"), "gate_up_proj": ("gate", "up")}


@dataclass(frozen=True, eq=False)
class LowRankMatrix:
    """Sum B A that is added to a matrix W [out, in]. A f32 [r, in], B f32 [out, r], scaled."""

    a: F32
    b: F32

    @property
    def delta(self) -> F32:
        """B A, f32 [out, in]."""
        product: F32 = self.b @ self.a
        return product


def canonical_matrices(
    adapter: Adapter, config: ModelConfig
) -> dict[tuple[int, str], LowRankMatrix]:
    """By layer and kind (q k v o gate up down), rows in the order of packs.

    Raises ModelError where the adapter is for a model of another shape, or its scaled values are
    not finite.
    """
    check_shapes(adapter, config)
    shapes = tensor_shapes(replace(config, num_hidden_layers=1))
    found: dict[tuple[int, str], LowRankMatrix] = {}
    for (layer, name), (a, b) in adapter.matrices.items():
        kinds = _kinds(name, config)
        rows = [shapes[f"layers.0.{kind}"][0] for kind in kinds]
        with np.errstate(over="ignore"):
            scaled = b * np.float32(adapter.scale(layer, name))
        if not np.isfinite(scaled).all():
            raise ModelError(
                f"{name} of layer {layer} is beyond what f32 holds in the adapter",
                "the adapter is damaged, or its training has diverged: get it or train it again",
            )
        for kind, part in zip(kinds, np.split(scaled, np.cumsum(rows)[:-1]), strict=True):
            found[layer, kind] = LowRankMatrix(a, _in_order(part, kind, config, to_pack=True))
    return found


def check_shapes(adapter: Adapter, config: ModelConfig) -> None:
    """Raises ModelError where the adapter is for a model of another shape."""
    shapes = tensor_shapes(replace(config, num_hidden_layers=1))
    for (layer, name), (a, b) in adapter.matrices.items():
        kinds = _kinds(name, config)
        if not kinds:
            raise _another_model(f"no {name} in a model of the kind {config.architecture}")
        if layer >= config.num_hidden_layers:
            raise _another_model(f"layer {layer} of {config.num_hidden_layers} (0 is the first)")
        rows = sum(shapes[f"layers.0.{kind}"][0] for kind in kinds)
        cols = shapes[f"layers.0.{kinds[0]}"][1]
        if (len(b), a.shape[1]) != (rows, cols):
            raise _another_model(
                f"{name} of layer {layer} is {len(b)} x {a.shape[1]} in the adapter, "
                f"{rows} x {cols} in the model"
            )


def as_stored(adapter: Adapter, config: ModelConfig) -> Adapter:
    """An adapter of separate q_proj, k_proj, … as PEFT holds it for this model: Phi's are fused.

    Given are matrices whose rows have the order of packs, as a model trained here has them. A
    fused pair has the ranks of its parts together: their A stacked, their B on the diagonal, so
    it computes the same. The adapter itself for other models.
    """
    if config.architecture != "phi3":
        return adapter
    shapes = tensor_shapes(replace(config, num_hidden_layers=1))
    matrices = dict(adapter.matrices)
    alphas = dict(adapter.alphas)
    for fused, kinds in _FUSED.items():
        rows = {kind: shapes[f"layers.0.{kind}"][0] for kind in kinds}
        for layer in sorted({layer for layer, _ in adapter.matrices}):
            parts = {k: (layer, f"{k}_proj") for k in kinds if (layer, f"{k}_proj") in matrices}
            if not parts:
                continue
            pairs = {kind: _scaled(adapter, key, kind, config) for kind, key in parts.items()}
            for key in parts.values():
                del matrices[key]
                alphas.pop(key, None)
            matrices[layer, fused] = _stacked(pairs, rows)
            rank = len(matrices[layer, fused][0])
            alphas[layer, fused] = float(rank**0.5 if adapter.use_rslora else rank)
    names = tuple(sorted({name for _, name in matrices}))
    return replace(adapter, matrices=matrices, alphas=alphas, targets=names)


def _scaled(
    adapter: Adapter, key: tuple[int, str], kind: str, config: ModelConfig
) -> tuple[F32, F32]:
    """A and B of a part, B multiplied by its scale and in the order of the model's files."""
    a, b = adapter.matrices[key]
    scaled = b * np.float32(adapter.scale(*key))
    return a, _in_order(scaled, kind, config, to_pack=False)


def _stacked(pairs: Mapping[str, tuple[F32, F32]], rows: Mapping[str, int]) -> tuple[F32, F32]:
    """A's on top of each other, B's on a diagonal; rows of parts without a pair are zeros."""
    a = np.concatenate([pair[0] for pair in pairs.values()])
    b = np.zeros((sum(rows.values()), len(a)), np.float32)
    first = start = 0
    for kind, count in rows.items():
        if kind in pairs:
            part = pairs[kind][1]
            b[first : first + count, start : start + part.shape[1]] = part
            start += part.shape[1]
        first += count
    return a, b


def _kinds(name: str, config: ModelConfig) -> tuple[str, ...]:
    """Canonical matrices that a module of the model's files holds; none: it has no such module."""
    is_fused = config.architecture == "phi3"
    if name in _FUSED:
        return _FUSED[name] if is_fused else ()
    kind = name.removesuffix("_proj")
    return () if is_fused and any(kind in kinds for kinds in _FUSED.values()) else (kind,)


def _in_order(b: F32, kind: str, config: ModelConfig, *, to_pack: bool) -> F32:
    """Rows of q and k of heads that are rotated in part, in the order of packs or of files."""
    factors, head_dim = config.rope_scaling.freq_factors, config.head_dim
    turned = 2 * sum(factor < UNTURNED for factor in factors)
    partial = config.architecture == "phi3" and factors and turned != head_dim
    if kind not in ("q", "k") or not partial:
        return b
    order = np.array(turned_order(head_dim, turned))
    order = order if to_pack else np.argsort(order)
    heads: F32 = b.reshape(-1, head_dim, b.shape[1])[:, order].reshape(b.shape)
    return heads


def _another_model(what: str) -> ModelError:
    return ModelError(
        f"the adapter is of another model: {what}", "give the model that it was trained on"
    )
