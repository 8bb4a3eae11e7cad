"""The models of picoedge's training in PyTorch: the bench's peer in f32, its reference in f64.

What a good engineer writes for eager mode: q, k, v as one matrix, gate and up as another, one
rotation for q and k together, `scaled_dot_product_attention` with `is_causal`, `rms_norm`, fused
AdamW. Weights have the names of `picoedge.train.state.layout`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from picoedge.config import ModelConfig
from picoedge.kernels.arrays import F32

HEADS = ("whole", "chunked", "fused")  # all logits at once; by rows; F.linear_cross_entropy
HEAD_ROWS = 256  # tokens whose logits are computed at once where the head is `chunked`


class TorchModel(torch.nn.Module):
    """A model, its weights f32 or f64 by name; sequences of `length` tokens."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, F32], length: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config = config
        self.named = {
            name: torch.nn.Parameter(torch.tensor(value, dtype=dtype))
            for name, value in weights.items()
        }
        self.stored = torch.nn.ParameterDict(
            {name.replace(".", "_"): value for name, value in self.named.items()}
        )
        self._ropes = {
            windowed: _rope(config, length, windowed=windowed, dtype=dtype)
            for windowed in (False, True)
        }
        at = torch.arange(length)
        hidden = (at[None] > at[:, None]) | (at[None] <= at[:, None] - config.sliding_window)
        self._window = ~hidden if config.windowed_layers else None

    def losses(self, tokens: torch.Tensor, targets: torch.Tensor, head: str) -> torch.Tensor:
        """The mean loss over targets [B, T]; head: one of HEADS."""
        x, wanted = self.hidden(tokens).flatten(0, 1), targets.flatten()
        table = self.named["embedding"]
        if head == "whole":
            return F.cross_entropy(F.linear(x, table), wanted)
        if head == "fused":
            options = torch.nn.LinearCrossEntropyOptions()
            return F.linear_cross_entropy(x, table, wanted, options=options)
        parts = zip(x.chunk(_chunks(x)), wanted.chunk(_chunks(x)), strict=True)
        sums = [F.cross_entropy(F.linear(a, table), b, reduction="sum") for a, b in parts]
        return torch.stack(sums).sum() / len(wanted)

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """The normed residual after the last layer, [B, T, hidden]."""
        x = F.embedding(tokens, self.named["embedding"])
        if self.config.embed_scale != 1.0:
            x = x * self.config.embed_scale
        for i in range(self.config.num_hidden_layers):
            x = x + self._normed(self._attention(x, i), f"{i}.post_attention_norm")
            x = x + self._normed(self._ffn(x, i), f"{i}.post_ffn_norm")
        return self._norm(x, "final_norm")

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], self.named[name], self.config.rms_norm_eps)

    def _normed(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return self._norm(x, name) if name in self.named else x

    def _attention(self, x: torch.Tensor, i: int) -> torch.Tensor:
        config = self.config
        batch, length, _ = x.shape
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        h = self._norm(x, f"{i}.input_norm")
        qkv = F.linear(h, self.named[f"{i}.qkv"], self.named.get(f"{i}.bias"))
        qkv = qkv.view(batch, length, heads + 2 * kv_heads, config.head_dim).transpose(1, 2)
        both, v = _split(qkv, heads + kv_heads)  # q and k; v
        if config.qk_norm:
            q, k = _split(both, heads)
            both = torch.cat((self._norm(q, f"{i}.q_norm"), self._norm(k, f"{i}.k_norm")), dim=1)
        windowed = i in config.windowed_layers
        q, k = _split(_rotated(both, *self._ropes[windowed]), heads)
        out = F.scaled_dot_product_attention(
            q, k, v,
            attn_mask=self._window if windowed else None,
            is_causal=not windowed,
            scale=config.attention_scale or config.head_dim**-0.5,
            enable_gqa=heads != kv_heads,
        )  # fmt: skip
        return F.linear(out.transpose(1, 2).flatten(2), self.named[f"{i}.o"])

    def _ffn(self, x: torch.Tensor, i: int) -> torch.Tensor:
        h = F.linear(self._norm(x, f"{i}.pre_ffn_norm"), self.named[f"{i}.gate_up"])
        gate, up = h.chunk(2, dim=-1)
        if self.config.hidden_act == "silu":
            return F.linear(F.silu(gate) * up, self.named[f"{i}.down"])
        return F.linear(F.gelu(gate, approximate="tanh") * up, self.named[f"{i}.down"])


def _chunks(x: torch.Tensor) -> int:
    return -(-len(x) // HEAD_ROWS)


def _split(heads: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first heads, and the others: [batch, heads, length, head_dim]."""
    one, other = torch.split_with_sizes(heads, [first, heads.shape[1] - first], dim=1)
    return one, other


def _rope(
    config: ModelConfig, length: int, *, windowed: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin) [length, head_dim / 2] by the formula of RoFormer, without scaling."""
    theta = config.rope_local_theta if windowed else config.rope_theta
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = torch.arange(length, dtype=torch.float64)[:, None] * theta**-pairs
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def optimizer(model: TorchModel, weight_decay: float, betas: Any, epsilon: float) -> Any:
    """Fused AdamW; norms and biases do not decay."""
    matrices = [value for value in model.named.values() if value.ndim == 2]
    others = [value for value in model.named.values() if value.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, betas=betas, eps=epsilon, fused=True)
