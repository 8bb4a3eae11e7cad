"""Shards of a model that a board computes with, or has on its disk."""

from __future__ import annotations

from dataclasses import dataclass

MANIFEST = "picoedge.json"  # the file that makes a folder a pack


@dataclass(frozen=True)
class Slice:
    """Runs of shards, any of which may be empty; of attention and FFN the same in every layer.

    `vocabulary` is of head shards. `head`: tokens come in and logits go out here, so that the
    embedding is here, and logits for all of the vocabulary, whoever computes them.
    """

    attention: range
    ffn: range
    head_shards: range = range(0)
    owns_head: bool = True


@dataclass(frozen=True)
class HeldShards:
    """The shards that a board has on its disk; of attention and FFN those of every layer."""

    attention: frozenset[int] = frozenset()
    ffn: frozenset[int] = frozenset()
    head: frozenset[int] = frozenset()
