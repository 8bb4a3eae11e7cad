"""Shape of an adapter, as boards tell each other; without NumPy, which daemons do not load."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from picoedge.fields import Fields
from picoedge.store.shards import UnitKind

ADAPTED: dict[str, UnitKind] = {
    **dict.fromkeys(("q", "k", "v", "o"), "attention"),
    **dict.fromkeys(("gate", "up", "down"), "ffn"),
}  # the matrices that an adapter may have, and the kind of their shards
MAX_RANK, MAX_LAYERS = 4096, 1 << 12
_IDENTITY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class AdapterShape:
    """Ranks by layer for each matrix name, 0 for none; and the hash of all values."""

    identity: str
    ranks: Mapping[str, tuple[int, ...]]

    def matrices(self) -> Iterator[tuple[int, str, int]]:
        """(layer, name, rank) of each matrix it has, in the order in which they are sent."""
        for name in ADAPTED:
            for layer, rank in enumerate(self.ranks.get(name, ())):
                if rank:
                    yield layer, name, rank

    def to_json(self) -> dict[str, Any]:
        """Plain values; `read_shape` reads them."""
        return {"id": self.identity, "ranks": {k: list(v) for k, v in self.ranks.items()}}


def read_shape(fields: Fields) -> AdapterShape:
    """The inverse of `AdapterShape.to_json`. Raises the fields' error where it is malformed."""
    ranks = fields.object("ranks").only(tuple(ADAPTED))
    found = {}
    for name in ranks.values:
        given = ranks.array(name, MAX_LAYERS)
        if not given or not all(type(rank) is int and 0 <= rank <= MAX_RANK for rank in given):
            raise ranks.fault(name, f"a list of ranks up to {MAX_RANK}")
        found[name] = tuple(given)
    return AdapterShape(fields.text("id", pattern=_IDENTITY), found)
