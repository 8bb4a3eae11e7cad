"""A model's forward pass that remembers, and its vector-Jacobian products (vjp), side by side.

    x = embedding[tokens]                               f32 [N, hidden], N = sequences * length
    for each layer:
        x = x + attention(norm(x))
        x = x + ffn(norm(x))
    losses = cross_entropy(head(norm(x)), targets)

A `MicroBatch` is the memory of one thread. What is cheap to compute anew is not kept: outputs of
norms, weights of the softmax. Per token and layer 2 hidden + qkv + heads + gate_up + FFN floats
are kept; with `recompute` only hidden, and each layer's forward pass runs twice.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from picoedge.config import ModelConfig
from picoedge.kernels.api import AttentionShape
from picoedge.kernels.arrays import F32, F64, I32
from picoedge.kernels.training import Attention, TrainingKernels
from picoedge.model.activations import Activations
from picoedge.model.bound_kernels import rope_tables
from picoedge.model.parameters import Gain, Layer, Parameters

HEAD_ROWS = 256  # tokens whose logits are in memory at once: a block of the products' order


def text_rows(n: int, length: int, documents: I32 | None) -> list[slice]:
    """Rows of each text: sequences of `length`, cut where `documents` i32 [n] changes."""
    starts = np.zeros(n, bool)
    starts[::length] = True
    if documents is not None:
        starts[1:] |= documents[1:] != documents[:-1]
    bounds = [*np.flatnonzero(starts).tolist(), n]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


class MicroBatch:
    """`sequences` sequences of `length` tokens through a model, forward and back.

    Gradients are of the sum of `weight` times each token's loss. Widths are multiples of 16.
    With `recompute` only the last `kept_layers` layers keep their values, the others compute them
    again; `head_rows` tokens have their logits in memory at once. Neither changes a bit where no
    matrix of the head is trained; without `kept_layers` and `head_rows` nor where it is.
    `documents` i32 [N], where given, says which text of its sequence a token belongs to: several
    short texts share a sequence, and each token attends to its own text alone. Positions go on over
    them, as rope sees differences alone.
    """

    def __init__(
        self,
        config: ModelConfig,
        kernels: TrainingKernels,
        parameters: Parameters,
        sequences: int,
        length: int,
        *,
        recompute: bool = False,
        kept_layers: int = 0,
        head_rows: int = HEAD_ROWS,
    ) -> None:
        self._config, self._kernels, self._parameters = config, kernels, parameters
        self._length = length
        n, hidden, layers = sequences * length, config.hidden_size, config.num_hidden_layers
        self._xs = np.empty((layers + 1, n, hidden), np.float32)  # the residual before each layer
        self._repeated = max(0, layers - kept_layers) if recompute else 0
        self._kept = self._make_kept(n, layers)
        self._texts: list[slice] = []  # rows whose tokens attend to each other
        self._normed, self._sums, self._dx, self._d = (
            np.empty((n, hidden), np.float32) for _ in range(4)
        )
        self._d_product, self._dqkv, self._d_heads = (
            np.empty_like(each)
            for each in (self._kept[0].product, self._kept[0].qkv, self._kept[0].heads)
        )
        self._final_scales = np.empty(n, np.float32)
        self._logits = np.empty((min(n, head_rows), config.vocab_size), np.float32)
        self._ropes = {
            windowed: rope_tables(config, length, windowed=windowed) for windowed in (False, True)
        }

    def _make_kept(self, n: int, layers: int) -> list[Activations]:
        """For each layer, and one for all that are repeated."""
        first, all_layers = Activations(self._config, n), self._parameters.layers
        heads = None if any(each.o.reads_input for each in all_layers) else first.heads
        product = None if any(each.down.reads_input for each in all_layers) else first.product
        count = layers - self._repeated if self._repeated else layers - 1
        return [first, *(Activations(self._config, n, heads, product) for _ in range(count))]

    def _kept_of(self, i: int) -> Activations:
        return self._kept[max(0, i - self._repeated + 1) if self._repeated else i]

    def losses_and_gradients(
        self,
        tokens: I32,
        targets: I32,
        weight: float,
        documents: I32 | None = None,
        reference: F32 | None = None,
    ) -> F64:
        """Losses f64 [N] of the targets (none where below 0), all [N]; sets all gradients.

        With `reference`, another model's `hidden` of these tokens under the same head, a token's
        loss is the divergence KL(reference || model) of what follows. It is estimated by the one
        target, less the reference's loss of it; its gradient is exact.
        """
        self._forward(tokens, documents)
        losses = self._head(targets, weight, reference)
        for i in reversed(range(self._config.num_hidden_layers)):
            kept = self._kept_of(i)
            if i < self._repeated - 1:  # the values of the last repeated one are still there
                self._layer(i, kept, again=True)
            self._layer_vjp(i, kept)
        if self._config.embed_scale != 1.0:
            self._dx *= np.float32(self._config.embed_scale)
        self._parameters.embedding.scatter(self._kernels, tokens, self._dx)
        return losses

    def hidden(self, tokens: I32) -> F32:
        """What the head reads: the normed last residual, f32 [N, hidden]."""
        self._forward(tokens)
        return self._normed.copy()

    def losses(self, tokens: I32, targets: I32, documents: I32 | None = None) -> F64:
        """Losses alone, f64 [N]."""
        self._forward(tokens, documents)
        losses = np.zeros(len(targets))
        for rows in self._head_rows(targets, len(self._logits)):
            losses[rows] = self._entropy(self._normed[rows], targets[rows], 0.0)[1]
        return losses

    def logits(self, tokens: I32, at: int = -1) -> F32:
        """Logits f32 [vocabulary] of one row of the micro-batch, by default the last."""
        self._forward(tokens)
        at %= len(tokens)
        self._parameters.head.forward(self._kernels, self._normed[at : at + 1], self._logits[:1])
        row: F32 = self._logits[0].copy()
        return row

    # -- the head ------------------------------------------------------------------------------

    def _head_rows(self, targets: I32, most: int) -> list[NDArray[np.intp]]:
        """Rows that have a target, `most` at once; never none."""
        rows = np.flatnonzero(targets >= 0)
        return [rows[at : at + most] for at in range(0, max(1, len(rows)), most)]

    def _entropy(self, x: F32, targets: I32, weight: float, at: int = 0) -> tuple[F32, F64]:
        """The gradient of the logits of x, in the rows of `_logits` from `at` on; the losses."""
        logits, losses = self._logits[at : at + len(x)], np.empty(len(x))
        self._parameters.head.forward(self._kernels, x, logits)
        self._kernels.cross_entropy(logits, targets, losses, weight)
        return logits, losses

    def _head(self, targets: I32, weight: float, reference: F32 | None = None) -> F64:
        """The losses, and the gradient of the last residual in `_dx`."""
        losses, parameters = np.zeros(len(targets)), self._parameters
        most = len(self._logits) // (1 if reference is None else 2)  # logits of both models
        self._d.fill(0)
        for number, rows in enumerate(self._head_rows(targets, most)):
            x = self._normed[rows]
            d_logits, losses[rows] = self._entropy(x, targets[rows], weight)
            if reference is not None:
                # (softmax - target) - (reference's softmax - target): the target cancels out.
                theirs, taken = self._entropy(reference[rows], targets[rows], weight, most)
                d_logits -= theirs
                losses[rows] -= taken
            d = np.empty_like(x)
            parameters.head.vjp(self._kernels, x, d_logits, d, accumulate=number > 0)
            self._d[rows] = d
        self._dx.fill(0)
        self._norm_vjp(self._xs[-1], parameters.final_norm, self._final_scales, self._d, self._dx)
        return losses

    def _norm_vjp(self, x: F32, gain: Gain, scales: F32, dy: F32, dx: F32) -> None:
        if gain.gradient is not None:
            gain.gradient.fill(0)
        self._kernels.norm_vjp(x, gain.weight, scales, dy, dx, gain.gradient)

    # -- forward -------------------------------------------------------------------------------

    def _forward(self, tokens: I32, documents: I32 | None = None) -> None:
        self._texts = text_rows(len(tokens), self._length, documents)
        self._parameters.embedding.gather(tokens, self._xs[0])
        if self._config.embed_scale != 1.0:
            self._xs[0] *= np.float32(self._config.embed_scale)
        for i in range(self._config.num_hidden_layers):
            self._layer(i, self._kept_of(i))
        self._norm(self._xs[-1], self._parameters.final_norm, self._normed, self._final_scales)

    def _norm(self, x: F32, gain: Gain, out: F32, scales: F32) -> None:
        self._kernels.norm(x, gain.weight, out, scales, self._config.rms_norm_eps)

    def _layer(self, i: int, kept: Activations, *, again: bool = False) -> None:
        """The residual after a layer; `again`: it is there, and only `kept` is wanted."""
        layer, kernels = self._parameters.layers[i], self._kernels
        self._norm(self._xs[i], layer.input_norm, self._normed, kept.norm_scales[0])
        self._project(layer, kept)
        self._rotate(i, kept.qkv)
        for op in self._attentions(i, kept):
            kernels.attention(op)
        layer.o.forward(kernels, kept.heads, self._sums)
        self._add(self._xs[i], 0, layer.post_attention_norm, kept, kept.middle)
        self._norm(kept.middle, layer.pre_ffn_norm, self._normed, kept.norm_scales[1])
        layer.gate_up.forward(kernels, self._normed, kept.gate_up)
        if not again or layer.down.reads_input or layer.post_ffn_norm is not None:
            kernels.gated(kept.gate_up, kept.product, self._config.hidden_act)
        if again and layer.post_ffn_norm is None:
            return
        layer.down.forward(kernels, kept.product, self._sums)
        self._add(kept.middle, 1, layer.post_ffn_norm, kept, self._xs[i + 1])

    def _project(self, layer: Layer, kept: Activations) -> None:
        layer.qkv.forward(self._kernels, self._normed, kept.qkv)
        if layer.qkv_bias is not None:
            kept.qkv += layer.qkv_bias.weight
        if layer.head_norms is None:
            return
        for raw, columns, gain, scales in self._raw_heads(layer, kept):
            raw[...] = kept.qkv[:, columns].reshape(raw.shape)
            out = np.empty_like(raw)
            self._norm(raw, gain, out, scales)
            kept.qkv[:, columns] = out.reshape(len(kept.qkv), -1)

    def _raw_heads(self, layer: Layer, kept: Activations) -> list[tuple[F32, slice, Gain, F32]]:
        """Of q and of k: the norm's input, columns of qkv, gain, and scales."""
        assert layer.head_norms is not None
        found, column, scale = [], 0, 0
        for raw, gain in zip(kept.raw_heads, layer.head_norms, strict=True):
            assert raw is not None
            width = raw.size // len(kept.qkv)
            scales = kept.raw_scales[scale : scale + len(raw)]
            found.append((raw, slice(column, column + width), gain, scales))
            column, scale = column + width, scale + len(raw)
        return found

    def _rotate(self, i: int, qkv: F32, *, back: bool = False) -> None:
        config = self._config
        heads = config.num_attention_heads + config.num_key_value_heads
        rope = self._ropes[i in config.windowed_layers]
        self._kernels.rotate(qkv, rope, heads, config.head_dim, back=back)

    def _attentions(self, i: int, kept: Activations) -> list[Attention]:
        """One for each text."""
        config, heads = self._config, self._config.num_attention_heads
        shape = AttentionShape(
            q_heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            scale=config.attention_scale or config.head_dim**-0.5,
            window=config.sliding_window if i in config.windowed_layers else 0,
        )
        return [
            Attention(
                shape, kept.qkv[rows], kept.heads[rows],
                *(
                    each[heads * rows.start : heads * rows.stop].reshape(heads, -1)
                    for each in (kept.tops, kept.scales)
                ),
            )
            for rows in self._texts
        ]  # fmt: skip

    def _add(self, x: F32, which: int, norm: Gain | None, kept: Activations, out: F32) -> None:
        """out = x + the sublayer's sums, normed where the architecture does so."""
        if norm is not None:
            kept.raw_sums[which] = self._sums
            self._norm(kept.raw_sums[which], norm, self._sums, kept.sum_scales[which])
        np.add(x, self._sums, out=out)

    # -- back ----------------------------------------------------------------------------------

    def _layer_vjp(self, i: int, kept: Activations) -> None:
        """`_dx`: the gradient after the layer, then the one before it."""
        layer, kernels, x = self._parameters.layers[i], self._kernels, self._xs[i]
        d = self._sums_vjp(1, layer.post_ffn_norm, kept)
        layer.down.vjp(kernels, kept.product, d, self._d_product)
        kernels.gated_vjp(kept.gate_up, self._d_product, self._config.hidden_act)
        if layer.gate_up.reads_input:
            self._norm(kept.middle, layer.pre_ffn_norm, self._normed, kept.norm_scales[1])
        layer.gate_up.vjp(kernels, self._normed, kept.gate_up, self._d)
        self._norm_vjp(kept.middle, layer.pre_ffn_norm, kept.norm_scales[1], self._d, self._dx)
        d = self._sums_vjp(0, layer.post_attention_norm, kept)
        layer.o.vjp(kernels, kept.heads, d, self._d_heads)
        for op, rows in zip(self._attentions(i, kept), self._texts, strict=True):
            kernels.attention_vjp(op, self._d_heads[rows], self._dqkv[rows])
        self._rotate(i, self._dqkv, back=True)
        self._project_vjp(layer, kept)
        if layer.qkv.reads_input:
            self._norm(x, layer.input_norm, self._normed, kept.norm_scales[0])
        layer.qkv.vjp(kernels, self._normed, self._dqkv, self._d)
        self._norm_vjp(x, layer.input_norm, kept.norm_scales[0], self._d, self._dx)

    def _sums_vjp(self, which: int, norm: Gain | None, kept: Activations) -> F32:
        """The gradient of a sublayer's sums."""
        if norm is None:
            return self._dx
        self._d.fill(0)
        scales = kept.sum_scales[which]
        self._norm_vjp(kept.raw_sums[which], norm, scales, self._dx, self._d)
        return self._d

    def _project_vjp(self, layer: Layer, kept: Activations) -> None:
        if layer.head_norms is not None:
            for raw, columns, gain, scales in self._raw_heads(layer, kept):
                d, dx = self._dqkv[:, columns].reshape(raw.shape), np.zeros_like(raw)
                self._norm_vjp(raw, gain, scales, np.ascontiguousarray(d), dx)
                self._dqkv[:, columns] = dx.reshape(len(kept.qkv), -1)
        if layer.qkv_bias is not None and layer.qkv_bias.gradient is not None:
            np.sum(self._dqkv, axis=0, out=layer.qkv_bias.gradient)
