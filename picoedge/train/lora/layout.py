"""Layout of the flat vector that is trained: the place of each adapter's matrices.

By layer, then in the order of TARGETS: A [r, in], then B [out, r].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from picoedge.config import ModelConfig
from picoedge.errors import UsageError
from picoedge.kernels.arrays import F32
from picoedge.kernels.sums import padded
from picoedge.model.parameters import Layer, Parameters
from picoedge.store.adapter_shape import MAX_RANK
from picoedge.store.adapters import MAX_ALPHA, Adapter
from picoedge.suggest import did_you_mean
from picoedge.train.lora.frozen import FrozenModel
from picoedge.train.lora.linear import AdaptedLinear, TrainedLowRank
from picoedge.train.state.initial import fill_uniform, tensor_key
from picoedge.train.state.layout import Tensor, name_at

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# target -> the matrix that it lies in
_MATRICES = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "o",
    "gate_proj": "gate_up", "up_proj": "gate_up", "down_proj": "down",
}  # fmt: skip


@dataclass(frozen=True)
class LoraShape:
    """Rank r, alpha and targets of an adapter. Raises UsageError where they make no sense."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise UsageError(f"a rank of {self.rank} is not possible", f"1 to {MAX_RANK} are")
        if not 0 < self.alpha <= MAX_ALPHA:  # NaN is neither
            raise UsageError(
                f"an alpha of {self.alpha:g} is not possible", "twice the rank is usual"
            )
        for name in self.targets:
            if name not in TARGETS:
                hint = did_you_mean(name, TARGETS) or f"known: {', '.join(TARGETS)}"
                raise UsageError(f"no target named {name[:64]!r}", hint)
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UsageError(
                "the targets are none, or one of them twice", f"known: {', '.join(TARGETS)}"
            )

    @property
    def scale(self) -> float:
        """The factor of B A x."""
        return self.alpha / self.rank


@dataclass(frozen=True, eq=False)
class AdapterLayout:
    """`TrainedLayout` of adapters on a frozen model. `tensors`: by (layer, target), A and B."""

    model: FrozenModel
    shape: LoraShape
    tensors: dict[tuple[int, str], tuple[Tensor, Tensor]]
    length: int

    @classmethod
    def of(cls, model: FrozenModel, shape: LoraShape) -> AdapterLayout:
        """Raises UsageError where the rank is larger than a matrix."""
        tensors, at = {}, 0
        for layer in range(model.config.num_hidden_layers):
            for name in TARGETS:
                if name not in shape.targets:
                    continue
                rows, cols = target_shape(model.config, name)
                if shape.rank > min(rows, cols):
                    raise UsageError(
                        f"a rank of {shape.rank} is larger than {name}, which is {rows} x {cols}",
                        f"choose a --rank up to {min(rows, cols)}",
                    )
                a = Tensor(f"{layer}.{name}.A", at, (shape.rank, cols))
                b = Tensor(f"{layer}.{name}.B", at + a.size, (rows, shape.rank))
                tensors[layer, name] = a, b
                at += a.size + b.size
        return cls(model, shape, tensors, padded(at))

    @property
    def config(self) -> ModelConfig:
        """See `TrainedLayout`."""
        return self.model.config

    @property
    def decayed(self) -> int:
        """See `TrainedLayout`: all of it."""
        return self.length

    @property
    def parameters(self) -> int:
        """Values that are trained."""
        return sum(a.size + b.size for a, b in self.tensors.values())

    def initial(self, seed: int) -> F32:
        """See `TrainedLayout`. As PEFT does: A uniform within 1 / sqrt(in), B zero."""
        flat = np.zeros(self.length, np.float32)
        for number, (a, _) in enumerate(self.tensors.values()):
            fill_uniform(a.of(flat), tensor_key(seed, number), 1 / math.sqrt(a.shape[1]))
        return flat

    def name_at(self, value: int) -> str:
        """See `TrainedLayout`."""
        return name_at(itertools.chain.from_iterable(self.tensors.values()), value)

    def bind(self, weights: F32, gradient: F32) -> Parameters:
        """See `TrainedLayout`."""
        layers = [self._layer(i, weights, gradient) for i in range(self.config.num_hidden_layers)]
        model = self.model
        return Parameters(model.embedding, layers, model.final_norm, model.head)

    def _layer(self, i: int, weights: F32, gradient: F32) -> Layer:
        frozen = self.model.layers[i]
        qkv, o, gate_up, down = (
            AdaptedLinear(frozen.matrix(name), list(self._adapters(i, name, weights, gradient)))
            for name in ("qkv", "o", "gate_up", "down")
        )
        norms = frozen.norms
        return Layer(
            norms["input_norm"], qkv, o, norms["pre_ffn_norm"], gate_up, down, frozen.qkv_bias,
            (norms["q_norm"], norms["k_norm"]) if self.config.qk_norm else None,
            norms.get("post_attention_norm"), norms.get("post_ffn_norm"),
        )  # fmt: skip

    def _adapters(
        self, i: int, matrix: str, weights: F32, gradient: F32
    ) -> Iterator[TrainedLowRank]:
        first = 0
        for name in TARGETS:
            if _MATRICES[name] != matrix:
                continue
            rows, _ = target_shape(self.config, name)
            if (i, name) in self.tensors:
                a, b = self.tensors[i, name]
                yield TrainedLowRank(
                    slice(first, first + rows), a.of(weights), b.of(weights), a.of(gradient),
                    b.of(gradient), self.shape.scale,
                )  # fmt: skip
            first += rows

    def adapter(self, weights: F32, base: str) -> Adapter:
        """The trained adapter; its matrices are views of `weights`."""
        matrices = {key: (a.of(weights), b.of(weights)) for key, (a, b) in self.tensors.items()}
        targets = tuple(name for name in TARGETS if name in self.shape.targets)
        return Adapter(base, self.shape.rank, self.shape.alpha, False, targets, matrices)


def target_shape(config: ModelConfig, name: str) -> tuple[int, int]:
    """Outputs and inputs of a target's matrix."""
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv_heads = config.num_attention_heads * dim, config.num_key_value_heads * dim
    return {
        "q_proj": (heads, hidden), "k_proj": (kv_heads, hidden), "v_proj": (kv_heads, hidden),
        "o_proj": (hidden, heads), "gate_proj": (inner, hidden), "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }[name]  # fmt: skip
