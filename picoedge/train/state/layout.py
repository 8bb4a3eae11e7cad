"""Layout of the flat vector of a model's weights: the place of each tensor. Pure.

Matrices come first, in the order of the forward pass, then norms, which have no weight decay. q, k
and v are one matrix of rows, gate and up another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from picoedge.config import ModelConfig
from picoedge.kernels.arrays import F32
from picoedge.kernels.sums import padded
from picoedge.model.parameters import Dense, Gain, Layer, Parameters, TiedEmbedding
from picoedge.train.state.initial import fill_normal, tensor_key

EMBEDDING, FINAL_NORM = "embedding", "final_norm"
_DEVIATION = 0.02  # of initial weights (GPT-2)


@dataclass(frozen=True)
class Tensor:
    """A tensor's place: its first value, and its shape."""

    name: str
    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Values in it."""
        return math.prod(self.shape)

    def of(self, flat: F32) -> F32:
        """A view of it in a flat vector."""
        return flat[self.offset : self.offset + self.size].reshape(self.shape)


@dataclass(frozen=True)
class Layout:
    """The tensors of a model, and the length of its vectors: a multiple of `SUM_BLOCK`."""

    config: ModelConfig
    tensors: dict[str, Tensor]
    decayed: int  # values before the norms
    length: int

    @classmethod
    def of(cls, config: ModelConfig) -> Layout:
        """The layout of a model whose embedding is its head."""
        assert config.tie_word_embeddings
        tensors: dict[str, Tensor] = {}
        at = 0
        for name, shape in _matrices(config):
            tensors[name] = Tensor(name, at, shape)
            at += math.prod(shape)
        at = decayed = padded(at)
        for name, width in _norms(config):
            tensors[name] = Tensor(name, at, (width,))
            at += width
        return cls(config, tensors, decayed, padded(at))

    @property
    def parameters(self) -> int:
        """Values that are trained."""
        return sum(tensor.size for tensor in self.tensors.values())

    def initial(self, seed: int) -> F32:
        """Weights to begin with: norms 1, matrices normal, those that end a sublayer smaller."""
        flat = np.zeros(self.length, np.float32)
        ends = _DEVIATION / math.sqrt(2 * self.config.num_hidden_layers)
        for number, (name, tensor) in enumerate(self.tensors.items()):
            view, kind = tensor.of(flat), name.rpartition(".")[2]
            if len(tensor.shape) == 1:
                view[...] = 1
                continue
            deviation = ends if kind in ("o", "down") else _DEVIATION
            fill_normal(view, tensor_key(seed, number), deviation)
        return flat

    def name_at(self, value: int) -> str:
        """See `TrainedLayout`."""
        return name_at(self.tensors.values(), value)

    def bind(self, weights: F32, gradient: F32) -> Parameters:
        """The model on these weights, with a gradient of one thread."""

        def dense(name: str) -> Dense:
            return Dense(self.tensors[name].of(weights), self.tensors[name].of(gradient))

        def gain(name: str) -> Gain:
            return Gain(self.tensors[name].of(weights), self.tensors[name].of(gradient))

        table = dense(EMBEDDING)
        layers = [
            Layer(
                gain(f"{i}.input_norm"), dense(f"{i}.qkv"), dense(f"{i}.o"),
                gain(f"{i}.pre_ffn_norm"), dense(f"{i}.gate_up"), dense(f"{i}.down"),
            )
            for i in range(self.config.num_hidden_layers)
        ]  # fmt: skip
        return Parameters(TiedEmbedding(table), layers, gain(FINAL_NORM), table)


def name_at(tensors: Iterable[Tensor], value: int) -> str:
    """The name of the tensor that a value of the flat vector belongs to."""
    held = (each.name for each in tensors if each.offset <= value < each.offset + each.size)
    return next(held, "nothing")


def _matrices(config: ModelConfig) -> Iterator[tuple[str, tuple[int, int]]]:
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv_heads = config.num_attention_heads * dim, config.num_key_value_heads * dim
    yield EMBEDDING, (config.vocab_size, hidden)
    for i in range(config.num_hidden_layers):
        yield f"{i}.qkv", (heads + 2 * kv_heads, hidden)
        yield f"{i}.o", (hidden, heads)
        yield f"{i}.gate_up", (2 * inner, hidden)
        yield f"{i}.down", (hidden, inner)


def _norms(config: ModelConfig) -> Iterator[tuple[str, int]]:
    for i in range(config.num_hidden_layers):
        for name, width in config.norm_lengths.items():
            yield f"{i}.{name}", width
    yield FINAL_NORM, config.hidden_size
