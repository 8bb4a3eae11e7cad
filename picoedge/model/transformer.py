"""The forward pass of one slice of a model, in the order things happen.

The file knows no network: what ties slices together is one callable, `reduce`, that is given the
f64 sums of this slice and leaves in their place the sums of all. On one board there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from picoedge.errors import ContextError, ModelError
from picoedge.kernels.api import Attend, AttentionShape, Kernels, Project, ProjectSum, Residual
from picoedge.kernels.blocks import Weights
from picoedge.kernels.rows import RowGather
from picoedge.model.rope import rope_tables
from picoedge.store.slices import Slice

if TYPE_CHECKING:
    from picoedge.store.reader import Pack

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Reduce = Callable[[F64], None]

LOGIT_ROWS = 8  # tokens whose logits are held at once when all are asked for


@dataclass(frozen=True, eq=False)
class Layer:
    """The five bound kernels of one layer, in the order they run."""

    project_qkv: Project
    attend: Attend
    project_attention: ProjectSum
    project_gate_up: Project
    project_down: ProjectSum


class Workspace:
    """Activations of one chunk of tokens, shared by all layers."""

    def __init__(self, batch: int, hidden: int, qkv: int, attention: int, ffn: int) -> None:
        self.x = np.zeros((batch, hidden), np.float32)  # residual stream
        self.sums = np.zeros((batch, hidden), np.float64)  # of the last sublayer, not yet in x
        self.qkv = np.zeros((batch, qkv), np.float32)
        self.attention = np.zeros((batch, attention), np.float32)
        self.gate_up = np.zeros((batch, 2 * ffn), np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        arrays = (self.x, self.sums, self.qkv, self.attention, self.gate_up)
        return sum(a.nbytes for a in arrays)


class Transformer:
    """A model (or a slice of one) bound to kernels, with its cache and its buffers.

    `batch` is the tokens a prompt is cut into. `kv_bits` (16 or 8) is how keys and values are
    held; f32 weights have them in f32. `reduce` is called twice a layer with the sums
    of the chunk, f64 [n, hidden], to be replaced by the sums over all slices.
    """

    def __init__(
        self,
        pack: Pack,
        kernels: Kernels,
        n_ctx: int,
        *,
        batch: int = 256,
        kv_bits: int = 16,
        reduce: Reduce | None = None,
        part: Slice | None = None,
    ) -> None:
        self.config, self.kernels, self.n_ctx = pack.config, kernels, n_ctx
        self._pack, self._reduce = pack, reduce
        self._slice = part or Slice(range(pack.n_attention_shards), range(pack.n_ffn_shards))
        self._batch, self._kv_bits = max(1, min(batch, n_ctx)), kv_bits
        self._caches: list[object] = []
        self._ropes: dict[bool, tuple[F32, F32]] = {}
        self._space = self._workspace()
        self._layers = [self._bind_layer(i) for i in range(self.config.num_hidden_layers)]
        self._head = pack.head()
        embedding = pack.embedding
        self._embedding = RowGather(embedding) if isinstance(embedding, Weights) else embedding
        self._logits = np.zeros((1, self._head.total_rows), np.float32)
        self._project_head = self._bind_head(self._logits)

    # -- building ------------------------------------------------------------------------------

    def _shape(self, layer: int) -> AttentionShape:
        config = self.config
        groups = len(self._slice.attention)
        return AttentionShape(
            q_heads=groups * config.heads_per_group,
            kv_heads=groups,
            head_dim=config.head_dim,
            scale=config.attention_scale or config.head_dim**-0.5,
            window=config.sliding_window if layer in config.windowed_layers else 0,
        )

    def _workspace(self) -> Workspace:
        shape, ffn = self._shape(0), 0
        if self._slice.ffn:
            ffn = self._pack.ffn(0, self._slice.ffn)["down"].total_cols
        attention = shape.q_heads * shape.head_dim
        qkv = attention + 2 * shape.kv_heads * shape.head_dim
        return Workspace(self._batch, self.config.hidden_size, qkv, attention, ffn)

    def _rope(self, layer: int) -> tuple[F32, F32]:
        windowed = layer in self.config.windowed_layers
        if windowed not in self._ropes:
            self._ropes[windowed] = rope_tables(self.config, self.n_ctx, windowed=windowed)
        return self._ropes[windowed]

    def _residual(self, norm: F32, post_norm: F32 | None, *, first: bool = False) -> Residual:
        space = self._space
        sums = None if first else space.sums
        return Residual(space.x, sums, post_norm, norm, self.config.rms_norm_eps)

    def _bind_layer(self, i: int) -> Layer:
        norms = self._pack.norms(i)
        before = self._pack.norms(i - 1).get("post_ffn_norm") if i else None
        into_attention = self._residual(norms["input_norm"], before, first=i == 0)
        into_ffn = self._residual(norms["pre_ffn_norm"], norms.get("post_attention_norm"))
        return Layer(*self._bind_attention(i, into_attention, norms), *self._bind_ffn(i, into_ffn))

    def _bind_attention(
        self, i: int, source: Residual, norms: dict[str, F32]
    ) -> tuple[Project, Attend, ProjectSum]:
        kernels, space, shards = self.kernels, self._space, self._slice.attention
        if not shards:
            nothing = kernels.project_sum(space.attention, None, None, space.sums)
            return kernels.project(source, [], [], space.qkv), _attend_nothing, nothing
        weights, biases = self._pack.attention(i, shards), self._pack.biases(i, shards)
        shape = self._shape(i)
        exact = all(w.spec.format.bits == 32 for w in weights.values())
        cache = kernels.kv_cache(self.n_ctx, shape, 32 if exact else self._kv_bits)
        self._caches.append(cache)
        head_norms = (norms["q_norm"], norms["k_norm"]) if self.config.qk_norm else None
        return (
            kernels.project(
                source,
                [weights[name] for name in "qkv"],
                [biases.get(f"{name}_bias") for name in "qkv"],
                space.qkv,
            ),
            kernels.attend(
                space.qkv, shape, self._rope(i), head_norms, self.config.rms_norm_eps, cache,
                space.attention,
            ),
            kernels.project_sum(space.attention, None, weights["o"], space.sums),
        )  # fmt: skip

    def _bind_ffn(self, i: int, source: Residual) -> tuple[Project, ProjectSum]:
        kernels, space, shards = self.kernels, self._space, self._slice.ffn
        if not shards:
            nothing = kernels.project_sum(space.gate_up, None, None, space.sums)
            return kernels.project(source, [], [], space.gate_up), nothing
        weights = self._pack.ffn(i, shards)
        up_and_gate: list[Weights] = [weights["gate"], weights["up"]]
        return (
            kernels.project(source, up_and_gate, [None, None], space.gate_up),
            kernels.project_sum(space.gate_up, self.config.hidden_act, weights["down"], space.sums),
        )

    def _bind_head(self, out: F32) -> Project:
        last = self.config.num_hidden_layers - 1
        post_norm = self._pack.norms(last).get("post_ffn_norm")
        source = self._residual(self._pack.final_norm, post_norm)
        return self.kernels.project(source, [self._head], [None], out)

    # -- running -------------------------------------------------------------------------------

    def _embed(self, tokens: Sequence[int]) -> None:
        x = self._space.x[: len(tokens)]
        self._embedding.gather(tokens, x)
        if self.config.embed_scale != 1.0:
            x *= np.float32(self.config.embed_scale)

    def _run_layers(self, tokens: Sequence[int], position: int) -> None:
        """Leaves x without, and sums with, what the last layer's FFN adds."""
        n, reduce, sums = len(tokens), self._reduce, self._space.sums[: len(tokens)]
        self._embed(tokens)
        for layer in self._layers:
            layer.project_qkv(n, 0)
            layer.attend(n, position)
            layer.project_attention(n)
            if reduce is not None:
                reduce(sums)
            layer.project_gate_up(n, 0)
            layer.project_down(n)
            if reduce is not None:
                reduce(sums)

    def _chunks(self, tokens: Sequence[int], position: int) -> Iterator[tuple[Sequence[int], int]]:
        if not tokens or position < 0 or position + len(tokens) > self.n_ctx:
            raise ContextError(
                f"{len(tokens)} tokens at position {position} do not fit the context of "
                f"{self.n_ctx} tokens",
                "use a larger --ctx-size or a shorter text",
            )
        if not 0 <= min(tokens) <= max(tokens) < self.config.vocab_size:
            raise ModelError(
                f"token {max(tokens)}: the model has an embedding for {self.config.vocab_size}",
                "the tokenizer is another model's: pack the model's own files",
            )
        for at in range(0, len(tokens), self._batch):
            yield tokens[at : at + self._batch], position + at

    def forward(self, tokens: Sequence[int], position: int) -> F32:
        """Logits after the last token, f32 [vocab]; a view that the next call overwrites.

        The tokens are put at position, position + 1, …; what the cache holds before them is
        used, what it holds after is forgotten. Raises ContextError beyond the context.
        """
        n = 0
        for chunk, at in self._chunks(tokens, position):
            self._run_layers(chunk, at)
            n = len(chunk)
        self._project_head(n, n - 1)
        return self._logits[0, : self.config.vocab_size]

    def forward_all(self, tokens: Sequence[int], position: int) -> Iterator[F32]:
        """Logits after every token, f32 [n, vocab], a few tokens at a time, each overwritten."""
        out = np.zeros((min(LOGIT_ROWS, self._batch), self._head.total_rows), np.float32)
        project_head = self._bind_head(out)
        for chunk, at in self._chunks(tokens, position):
            self._run_layers(chunk, at)
            for first in range(0, len(chunk), len(out)):
                end = min(first + len(out), len(chunk))
                project_head(end, first)
                yield out[: end - first, : self.config.vocab_size]

    def memory_bytes(self) -> dict[str, int]:
        """Bytes of the weights, the full cache, and the activations."""
        return {
            "weights": self._pack.nbytes,
            "kv_cache": sum(int(getattr(cache, "nbytes", 0)) for cache in self._caches),
            "activations": self._space.nbytes + self._logits.nbytes,
        }

    def close(self) -> None:
        """Stop the kernels' threads. Idempotent."""
        self.kernels.close()


def _attend_nothing(n: int, position: int) -> None:
    """Attention of a slice without attention shards."""
