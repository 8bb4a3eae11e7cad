"""Whether the product's own plan finds room for the model on the boards that can be reached.

A refusal is an answer where it finds none. Pure, but for `holding_of`, which looks once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from bench.children import BenchError
from bench.life.boards import FORM_S, PICOEDGE, LifeBoards
from picoedge.engine.fit import load_of
from picoedge.engine.options import OpenOptions
from picoedge.errors import MemoryBudgetError, StorageError
from picoedge.planner.cluster_plan import plan_cluster
from picoedge.planner.memory import Load
from picoedge.planner.topology import LinkFacts, Topology, topology_from_json
from picoedge.store.pack.reader import Pack


@dataclass(frozen=True)
class Holding:
    """The model's `load`, and all boards as they were when all was well."""

    load: Load
    cluster: Topology

    def is_held_by(self, boards: Collection[int], hub: int) -> bool:
        """Whether `plan` over these boards, asked on `hub`, finds room."""
        try:
            plan_cluster(self.load, among(self.cluster, boards, hub))
        except (MemoryBudgetError, StorageError):
            return False
        return True


def among(cluster: Topology, boards: Collection[int], hub: int) -> Topology:
    """The same with these boards only, `hub` being one of them.

    As a hub a board is as large as the first hub: a tokenizer is in it.
    """
    kept = sorted(boards)
    fixed = max(board.fixed_bytes for board in cluster.boards)
    facts = [
        dataclasses.replace(cluster.boards[i], fixed_bytes=fixed) if i == hub else cluster.boards[i]
        for i in kept
    ]
    seen = list(cluster.links.values()) or [LinkFacts(0.0, 1e9)]
    slowest = LinkFacts(max(x.latency_s for x in seen), min(x.bytes_per_s for x in seen))
    known = {
        (kept.index(i), kept.index(j)): cluster.links[i, j]
        for i, j in combinations(kept, 2)
        if (i, j) in cluster.links
    }
    return Topology(tuple(facts), known, slowest, kept.index(hub))


def holding_of(boards: LifeBoards, pack: Path, n_ctx: int) -> Holding:
    """As the first board sees them now. Raises BenchError."""
    first = boards[0]
    words = [PICOEDGE[0], "-m", "bench.mesh_look", str(len(boards.all)), str(FORM_S)]
    done = first.board.run(words, env=first.environment(), timeout_s=2 * FORM_S)
    if done.returncode:
        raise BenchError(f"the boards' memory cannot be looked at: {done.stderr.strip()[-300:]}")
    cluster = topology_from_json(json.loads(done.stdout.splitlines()[-1]))
    opened = Pack.open(pack)
    return Holding(load_of(opened, opened.all_shards, OpenOptions(n_ctx=n_ctx)), cluster)
