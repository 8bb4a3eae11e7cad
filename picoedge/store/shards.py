"""Shards of a model that a board computes with, or has on its disk."""

from __future__ import annotations

from dataclasses import dataclass

MANIFEST = "picoedge.json"  # the file that makes a folder a pack


@dataclass(frozen=True)
class Slice:
    """Spans of shards that one board computes, each possibly empty; the same in every layer.

    `owns_head`: this board embeds the tokens and gathers the logits of the whole vocabulary,
    also of head shards that other boards compute.
    """

    attention: range
    ffn: range
    head_shards: range = range(0)
    owns_head: bool = True


@dataclass(frozen=True)
class HeldShards:
    """Shards on a board's disk; of attention and FFN those that all layers have."""

    attention: frozenset[int] = frozenset()
    ffn: frozenset[int] = frozenset()
    head: frozenset[int] = frozenset()
