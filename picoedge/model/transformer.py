"""The forward pass of a model, or of one slice of it, in the order things happen.

    x = embedding[tokens]                             f32 [n, hidden]
    for each layer:
        sums = attention(norm(x))                     f64 [n, hidden], over all slices
        x += sums
        sums = ffn(norm(x))                           f64 [n, hidden], over all slices
        x += sums
    logits = head(norm(x))                            f32 [vocab]

The kernel that reads x next adds the sums to it (kernels.api.Residual).

The file knows no network: slices are joined by three hooks. `broadcast_input` sends the embedded
tokens of each chunk to slices without an embedding; `reduce` replaces this slice's f64 sums by the
sums over all slices; `gather_logits` sends this slice's logits, or collects the others'.
One board alone has no hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from picoedge.errors import ContextError, ModelError, StorageError
from picoedge.kernels.api import (
    Attend,
    AttentionShape,
    Kernels,
    KvCache,
    Project,
    ProjectSum,
    Residual,
)
from picoedge.kernels.arrays import F32
from picoedge.model.bound_kernels import (
    AdaptedSpanKernels,
    HeadKernel,
    Lane,
    Reduce,
    SpanKernels,
    Workspace,
    lanes_of,
    rope_tables,
)
from picoedge.store.shards import Slice, UnitKind
from picoedge.store.window.weights import BoundSpan, MappedWeights, WeightStore

if TYPE_CHECKING:
    from picoedge.model.adapter import AdapterSlice
    from picoedge.store.pack.reader import Pack

BroadcastInput = Callable[[F32, int, int], None]
GatherLogits = Callable[[F32], None]

LOGIT_ROWS = 8  # tokens whose logits are computed at once when all are wanted
NOTHING = BoundSpan(range(0), {})  # of a slice that has no shards of a kind


class Transformer:
    """A model (or a slice of one) bound to kernels, with its cache and its buffers.

    `batch`: tokens of a prompt that run at once. `kv_bits` (16 or 8): the key-value cache of
    quantized weights; f32 weights have an f32 cache. `holding`: the weights; without it `part` of
    the pack (or all of it) is mapped. The hooks of a slice, in the order of their calls:
    `broadcast_input(x, position, wanted)` once a chunk, x f32 [n, hidden], `wanted` last tokens
    whose logits are needed (0, 1 or n); `reduce(sums)` twice a layer and lane, f64 [n, hidden],
    in place once the function it returns has been called; `gather_logits(logits)`, f32
    [wanted, columns]: the whole vocabulary where the slice has the head, else its own part.
    `adapter`: added to the products; it has the shards of `part`, or more.
    """

    boards = 1

    def __init__(
        self,
        pack: Pack,
        kernels: Kernels,
        n_ctx: int,
        *,
        batch: int = 256,
        kv_bits: int = 16,
        reduce: Reduce | None = None,
        broadcast_input: BroadcastInput | None = None,
        gather_logits: GatherLogits | None = None,
        part: Slice | None = None,
        holding: WeightStore | None = None,
        adapter: AdapterSlice | None = None,
    ) -> None:
        self.config, self.kernels, self.n_ctx = pack.config, kernels, n_ctx
        self.weight_store = holding or MappedWeights(pack, part)
        self._reduce, self._broadcast_input = reduce, broadcast_input
        self._gather_logits = gather_logits
        self._pack, self._kv_bits, self._adapter = pack, kv_bits, adapter
        self.batch = max(1, min(batch, n_ctx))
        self._caches: dict[tuple[int, int], KvCache] = {}  # by layer and first shard
        self._ropes: dict[bool, tuple[F32, F32]] = {}
        self._space = self._workspace()
        self._embedding = (
            self.weight_store.embedding() if self.weight_store.part.owns_head else None
        )
        self._logits = np.zeros((1, len(self._columns)), np.float32)
        self.after_forward: Callable[[int], None] | None = None  # called with the number of tokens
        self.bind()

    # -- building ------------------------------------------------------------------------------

    def bind(self) -> None:
        """Bind the kernels to the weights where they now lie in memory; the cache is kept."""
        self._sublayers: list[list[SpanKernels]] = []  # attention and FFN of each layer, in turn
        for i in range(self.config.num_hidden_layers):
            self._sublayers.append(self._bind_attention(i))
            self._sublayers.append(self._bind_ffn(i))
        self._project_head = self._bind_head(self._logits)

    def unbind(self) -> None:
        """Drop all references to the weights, so that they can be moved; call `bind` afterwards."""
        self._sublayers, self._project_head = [], []

    def renew(self, reduce: Reduce | None, gather_logits: GatherLogits | None) -> None:
        """Forget every token, also of a pass that was broken off, and join a slice to others anew.

        The weights stay; the cache and all buffers are new ones, which take no memory until they
        are used. Raises what reading weights raises.
        """
        self.unbind()
        self._caches.clear()
        self._space, self._logits = self._workspace(), np.zeros_like(self._logits)
        self._reduce, self._gather_logits = reduce, gather_logits
        self.weight_store.rewind()
        self.bind()

    @property
    def _columns(self) -> range:
        """The rows of the vocabulary for which this slice has logits."""
        part, rows = self.weight_store.part, self._pack.head_shard_rows
        shards = range(self._pack.n_head_shards) if part.owns_head else part.head_shards
        return range(shards.start * rows, shards.stop * rows)

    def _shape(self, layer: int, groups: int) -> AttentionShape:
        config = self.config
        return AttentionShape(
            q_heads=groups * config.heads_per_group,
            kv_heads=groups,
            head_dim=config.head_dim,
            scale=config.attention_scale or config.head_dim**-0.5,
            window=config.sliding_window if layer in config.windowed_layers else 0,
        )

    def _workspace(self) -> Workspace:
        layers = range(self.config.num_hidden_layers)
        attention = [held for i in layers for held in self.weight_store.spans("attention", i)]
        ffn = [held for i in layers for held in self.weight_store.spans("ffn", i)]
        shape = self._shape(0, max((len(held.shards) for held in attention), default=0))
        heads = shape.q_heads * shape.head_dim
        qkv = heads + 2 * shape.kv_heads * shape.head_dim
        widest = max((held.weights["down"].total_cols for held in ffn), default=0)
        return Workspace(self.batch, self.config.hidden_size, qkv, heads, 2 * widest)

    def _rope(self, layer: int) -> tuple[F32, F32]:
        windowed = layer in self.config.windowed_layers
        if windowed not in self._ropes:
            self._ropes[windowed] = rope_tables(self.config, self.n_ctx, windowed=windowed)
        return self._ropes[windowed]

    def _residual(self, norm: F32, post_norm: F32 | None, *, first: bool = False) -> Residual:
        space = self._space
        sums = None if first else space.sums
        return Residual(space.x, sums, post_norm, norm, self.config.rms_norm_eps)

    def _bind_attention(self, i: int) -> list[SpanKernels]:
        space, norms = self._space, self._pack.norms(i)
        before = self._pack.norms(i - 1).get("post_ffn_norm") if i else None
        source = self._residual(norms["input_norm"], before, first=i == 0)
        bound: list[SpanKernels] = []
        for held in self.weight_store.spans("attention", i) or [NOTHING]:
            shape, weights = self._shape(i, len(held.shards)), held.weights
            names = ("q", "k", "v") if weights else ()
            biases = self._pack.biases(i, held.shards) if weights else {}
            heads = space.rows(space.attention, shape.q_heads * shape.head_dim)
            qkv = space.rows(space.qkv, (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim)
            into = [weights[name] for name in names]
            added = [biases.get(f"{name}_bias") for name in names]
            project = Project(source, into, added, qkv, reuse_input=bool(bound))
            attend = self._attend(i, held, shape, qkv, heads) if weights else None
            sums = ProjectSum(heads, None, weights.get("o"), space.sums, accumulate=bool(bound))
            bound.append(self._span(i, "attention", held, project, attend, sums))
        return bound

    def _attend(
        self, i: int, held: BoundSpan, shape: AttentionShape, qkv: F32, heads: F32
    ) -> Attend:
        key = i, held.shards.start
        if key not in self._caches:
            exact = all(w.spec.format.bits == 32 for w in held.weights.values())
            self._caches[key] = KvCache(self.n_ctx, shape, 32 if exact else self._kv_bits)
        norms, eps = self._pack.norms(i), self.config.rms_norm_eps
        head_norms = (norms["q_norm"], norms["k_norm"]) if self.config.qk_norm else None
        cache, rope = self._caches[key], self._rope(i)
        return Attend(qkv, shape, rope, head_norms, eps, cache, heads)

    def _bind_ffn(self, i: int) -> list[SpanKernels]:
        space, norms = self._space, self._pack.norms(i)
        source = self._residual(norms["pre_ffn_norm"], norms.get("post_attention_norm"))
        act, bound = self.config.hidden_act, list[SpanKernels]()
        for held in self.weight_store.spans("ffn", i) or [NOTHING]:
            into = [held.weights[name] for name in ("gate", "up") if held.weights]
            down = held.weights.get("down")
            x = space.rows(space.gate_up, sum(w.total_rows for w in into))
            project = Project(source, into, [None] * len(into), x, reuse_input=bool(bound))
            sums = ProjectSum(x, act, down, space.sums, accumulate=bool(bound))
            bound.append(self._span(i, "ffn", held, project, None, sums))
        return bound

    def _span(
        self, i: int, kind: UnitKind, held: BoundSpan, project: Project, attend: Attend | None,
        project_sum: ProjectSum,
    ) -> SpanKernels:  # fmt: skip
        if self._adapter is None:
            return SpanKernels(self.kernels, held, project, attend, project_sum)
        rows = self._adapter.project_parts(i, kind, held.shards)
        columns = self._adapter.sum_parts(i, kind, held.shards)
        return AdaptedSpanKernels(
            self.kernels, held, project, attend, project_sum, rows, columns
        )  # fmt: skip

    def _bind_head(self, out: F32) -> list[HeadKernel]:
        layers = self.config.num_hidden_layers
        own = self.weight_store.spans("head", layers)
        if not own:
            return []
        post_norm = self._pack.norms(layers - 1).get("post_ffn_norm")
        source = self._residual(self._pack.final_norm, post_norm)
        spans: list[HeadKernel] = []
        for held in own:
            head = held.weights["head"]
            first = held.shards.start * self._pack.head_shard_rows - self._columns.start
            columns = out[:, first : first + head.total_rows]
            op = Project(source, [head], [None], columns, reuse_input=bool(spans))
            spans.append(HeadKernel(held, self.kernels.project(op)))
        return spans

    # -- running -------------------------------------------------------------------------------

    def _run_tokens(self, tokens: Sequence[int], position: int, wanted: int) -> None:
        assert self._embedding is not None, "a slice without an embedding is given its input"
        x = self._space.x[: len(tokens)]  # [n, hidden]
        self._embedding.gather(tokens, x)
        if self.config.embed_scale != 1.0:
            x *= np.float32(self.config.embed_scale)
        if self._broadcast_input is not None:
            self._broadcast_input(x, position, wanted)
        self._run_layers(len(tokens), position)

    def _run_layers(self, n: int, position: int) -> None:
        """Run all layers; the sums of the last FFN stay in `sums`, not yet added to x."""
        if not self._sublayers:
            raise StorageError("the weights could not be read again", "open the model again")
        lanes = lanes_of(n, position, tied=self._reduce is not None)
        for spans in self._sublayers:
            self._run_spans(spans, lanes)
        for lane in lanes:
            lane.finish()

    def _run_spans(self, spans: Sequence[SpanKernels], lanes: list[Lane]) -> None:
        """Compute each lane once its previous sums are here; the other lane's travel meanwhile."""
        for span in spans:
            span.held.acquire()
            for lane in lanes:
                lane.finish()
                span(lane)
                if span is spans[-1] and self._reduce is not None:
                    lane.begin(self._reduce, self._space.sums)
            span.held.release()

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
        for at in range(0, len(tokens), self.batch):
            yield tokens[at : at + self.batch], position + at

    def forward(self, tokens: Sequence[int], position: int) -> F32:
        """Logits after the last token, f32 [vocab]; a view that the next call overwrites.

        The tokens get positions position, position + 1, …; the cache before them is used, the
        cache behind them is discarded. Raises ContextError beyond the context, ModelError for a
        token that the embedding does not have.
        """
        n, end = 0, position + len(tokens)
        for chunk, at in self._chunks(tokens, position):
            n = len(chunk)
            self._run_tokens(chunk, at, wanted=1 if at + n == end else 0)
        self._run_head(n)  # a method: no local variable keeps weights that `after_forward` replaces
        if self.after_forward is not None:
            self.after_forward(len(tokens))
        return self._logits[0, : self.config.vocab_size]

    def forward_slice(self, x: F32, position: int, wanted: int = 0) -> None:
        """Run this slice on the input that the first slice broadcast, f32 [n, hidden], n <= batch.

        Results are delivered through `reduce` (partial sums) and `gather_logits`.
        """
        n = len(x)
        if not 0 < n <= self.batch or not 0 <= position <= self.n_ctx - n:
            raise ContextError(f"{n} tokens at position {position} are not within the session")
        self._space.x[:n] = x
        self._run_layers(n, position)
        if wanted == 1:
            self._run_head(n)
        elif wanted:
            for _ in self._every_logit(n, *self._bind_rows()):
                pass  # `gather_logits` has sent them
        if self.after_forward is not None:
            self.after_forward(n)

    def _run_head(self, n: int) -> None:
        for project in self._project_head:
            project(n, n - 1)
        if self._gather_logits is not None:
            self._gather_logits(self._logits)

    def forward_all(self, tokens: Sequence[int], position: int) -> Iterator[F32]:
        """Logits after every token, f32 [n, vocab], of a few tokens at a time.

        Each is a view that the next one overwrites. Raises as `forward` does.
        """
        out, head = self._bind_rows()
        for chunk, at in self._chunks(tokens, position):
            self._run_tokens(chunk, at, wanted=len(chunk))
            for logits in self._every_logit(len(chunk), out, head):
                yield logits[:, : self.config.vocab_size]

    def _bind_rows(self) -> tuple[F32, list[HeadKernel]]:
        """A buffer for the logits of a few tokens at once, and the head bound to it."""
        out = np.zeros((min(LOGIT_ROWS, self.batch), len(self._columns)), np.float32)
        return out, self._bind_head(out)

    def _every_logit(self, n: int, out: F32, head: Sequence[HeadKernel]) -> Iterator[F32]:
        """The logits of all tokens of a chunk, f32 [rows, columns], a few rows at a time."""
        for first in range(0, n, len(out)):
            end = min(first + len(out), n)
            for project in head:
                project(end, first)
            if self._gather_logits is not None:
                self._gather_logits(out[: end - first])
            yield out[: end - first]

    @property
    def disk_wait_s(self) -> float:
        """Seconds spent so far waiting for weights to be read from storage."""
        return self.weight_store.usage.wait_s

    @property
    def bytes_streamed(self) -> int:
        """Bytes of streamed weights read so far."""
        return self.weight_store.usage.bytes_read

    def memory_bytes(self) -> dict[str, int]:
        """Bytes of the weights, the full cache, and the activations."""
        adapter = {"adapter": self._adapter.nbytes} if self._adapter else {}
        return {
            "weights": self._pack.nbytes,
            **adapter,
            "kv_cache": sum(int(cache.nbytes) for cache in self._caches.values()),
            "activations": self._space.nbytes + self._logits.nbytes,
        }

    def close(self) -> None:
        """Stop the kernels' threads and the readers of weights; free all memory. Idempotent.

        What describes the model, and what it has counted, can still be read.
        """
        self.unbind()
        self._caches, self._ropes, self._embedding, self._adapter = {}, {}, None, None
        self._space = Workspace(0, 0, 0, 0, 0)
        self.after_forward = None
        self.weight_store.close()
        self.kernels.close()
