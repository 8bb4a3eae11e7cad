"""The frozen weights of a pack as training computes with them: views of its mapped files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from picoedge.config import ModelConfig
from picoedge.errors import UnsupportedError
from picoedge.kernels.arrays import F32
from picoedge.kernels.stacked import StackedWeights
from picoedge.model.parameters import Gain
from picoedge.store.pack.reader import Pack
from picoedge.train.lora.linear import AdaptedLinear, FrozenEmbedding

_STEP = 16  # widths that the kernels of training take are multiples of it


@dataclass(frozen=True, eq=False)
class FrozenLayer:
    """Matrices of a layer, its norms by name (`ModelConfig.norm_lengths`), and its bias."""

    qkv: StackedWeights
    o: StackedWeights
    gate_up: StackedWeights
    down: StackedWeights
    norms: dict[str, Gain]
    qkv_bias: Gain | None

    def matrix(self, name: str) -> StackedWeights:
        """qkv, o, gate_up or down."""
        found: StackedWeights = getattr(self, name)
        return found


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """All weights of a pack, of which nothing is copied but norms and biases. Keep the pack."""

    config: ModelConfig
    embedding: FrozenEmbedding
    layers: tuple[FrozenLayer, ...]
    final_norm: Gain
    head: AdaptedLinear

    @classmethod
    def of(cls, pack: Pack) -> FrozenModel:
        """Raises ModelError where shards are missing, UnsupportedError for odd widths."""
        config = pack.config
        _check_widths(config)
        pack.check_held(pack.all_shards, embed=True)
        layers = tuple(_layer(pack, i) for i in range(config.num_hidden_layers))
        head = StackedWeights((pack.head(),), limit=config.vocab_size)
        return cls(
            config, FrozenEmbedding(pack.embedding), layers, Gain(pack.final_norm),
            AdaptedLinear(head),
        )  # fmt: skip


def _check_widths(config: ModelConfig) -> None:
    for name in ("hidden_size", "intermediate_size", "head_dim"):
        width = getattr(config, name)
        if width % _STEP:
            raise UnsupportedError(
                f"the model's {name} is {width}: training takes multiples of {_STEP}",
                "choose another model",
            )


def _layer(pack: Pack, i: int) -> FrozenLayer:
    attention, ffn = pack.mapped("attention", i), pack.mapped("ffn", i)
    biases = pack.biases(i)
    bias: F32 | None = None
    if biases:
        bias = np.concatenate([biases[name] for name in ("q_bias", "k_bias", "v_bias")])
    return FrozenLayer(
        StackedWeights((attention["q"], attention["k"], attention["v"])),
        StackedWeights((attention["o"],), by_columns=True),
        StackedWeights((ffn["gate"], ffn["up"])),
        StackedWeights((ffn["down"],), by_columns=True),
        {name: Gain(weight) for name, weight in pack.norms(i).items()},
        None if bias is None else Gain(bias),
    )
