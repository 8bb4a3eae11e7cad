"""Boards, links and models of made-up figures, for tests of plans over many boards."""

from __future__ import annotations

from typing import Any

from picoedge.config import ModelConfig
from picoedge.planner.memory import Load
from picoedge.planner.topology import BoardFacts, LinkFacts, Topology
from picoedge.store.pages import PAGE, page_up
from picoedge.store.shards import Slice, Unit

MB = 1 << 20
LAN = LinkFacts(latency_s=60e-6, bytes_per_s=1e9)
SLOW = LinkFacts(latency_s=1e-3, bytes_per_s=37e6)  # TPI-LLM's network
_BITS = 4.5
_FFN_COLS = 256
_HEAD_SHARDS = 50


def load_of(
    layers: int = 22,
    hidden: int = 2048,
    groups: int = 4,
    shards: int = 22,
    vocab: int = 32000,
    n_ctx: int = 2048,
) -> Load:
    """A Llama of this shape in 4 bits with heads of 64; TinyLlama's where nothing is said."""
    heads = hidden // 64
    config = ModelConfig(
        architecture="llama",
        hidden_size=hidden,
        intermediate_size=shards * _FFN_COLS,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=64,
        vocab_size=vocab,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
    )
    attention = shard_bytes((2 * heads + 2 * groups) * 64 * hidden / groups)
    ffn, head = shard_bytes(3 * _FFN_COLS * hidden), shard_bytes(vocab * hidden / _HEAD_SHARDS)
    runs: list[Unit] = []
    for layer in range(layers):
        file, behind = f"layer-{layer:03d}.safetensors", PAGE + page_up(groups * attention)
        runs.append(Unit("attention", layer, range(groups), file, PAGE, groups * attention))
        runs.append(Unit("ffn", layer, range(shards), file, behind, shards * ffn))
    file, nbytes = "head.safetensors", _HEAD_SHARDS * head
    runs.append(Unit("head", layers, range(_HEAD_SHARDS), file, PAGE, nbytes))
    part = Slice(range(groups), range(shards), range(_HEAD_SHARDS))
    rows = -(-vocab // _HEAD_SHARDS)
    return Load(config, part, tuple(runs), _FFN_COLS, n_ctx, 16, head_shard_rows=rows)


def shard_bytes(weights: float) -> int:
    """Bytes of so many weights, a multiple of 64."""
    return -(-int(weights * _BITS / 8) // 64) * 64


def board(name: str = "a", speed: float = 8e9, memory: float = 2000, **facts: Any) -> BoardFacts:
    """A board of `speed` bytes of weights a second and `memory` MB, 60 of them taken."""
    values = {"cores": 1, "disk_bytes_per_s": 100e6, "fixed_bytes": 60 * MB} | facts
    return BoardFacts(name, compute_bytes_per_s=speed, budget_bytes=round(memory * MB), **values)


def cluster(*boards: BoardFacts, link: LinkFacts = LAN) -> Topology:
    """These boards with one link between all, the first the hub."""
    return Topology(boards, {}, link)


def weights_bytes(load: Load) -> int:
    """Bytes of all shards."""
    return sum(run.nbytes for run in load.runs)
