"""Which shards of a model a board holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Slice:
    """Runs of attention and FFN shards, the same in every layer; either may be empty.

    `head`: also the embedding, the last norm and the vocabulary, where tokens come in and go out.
    """

    attention: range
    ffn: range
    head: bool = True


@dataclass(frozen=True)
class Held:
    """The shards that a board has on its disk, of every layer."""

    attention: frozenset[int]
    ffn: frozenset[int]
