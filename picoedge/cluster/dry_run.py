"""Dry run: plan a model over the boards of a file, or of the cluster now, and load nothing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import zmq

from picoedge.cluster.arrangement import plan_over
from picoedge.engine.open import OpenPack
from picoedge.errors import StorageError, UsageError
from picoedge.jobs.boards import BoardDirectory, loaded_shards, locate_shards
from picoedge.mesh.cluster_folder import cluster_folder
from picoedge.mesh.identity.identity import load_identity
from picoedge.planner.cluster_plan import ClusterPlan
from picoedge.planner.topology import Topology, read_topology
from picoedge.store.shards import HeldShards, Slice


class MeshFacts(NamedTuple):
    """Boards and links, and what boards have of a model, by index: see `plan_cluster`."""

    cluster: Topology
    held: Mapping[int, HeldShards] | None = None
    loaded: Mapping[int, Slice] | None = None


def plan_group(opened: OpenPack, there: MeshFacts) -> ClusterPlan:
    """Plan the opened pack over these boards.

    `options.memory_bytes` limits the hub's memory. Raises ModelError, UsageError, and
    MemoryBudgetError or StorageError if the boards cannot hold the model.
    """
    pack, options = opened.pack, opened.options
    limited = _limited(there.cluster, options.memory_bytes)
    return plan_over(limited, pack, options, there.held, there.loaded)


def topology_of_file(file: Path, hub: str | None) -> Topology:
    """The boards of a file; `hub` names the hub, None: as the file says.

    Raises UsageError, StorageError.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise StorageError(f"{file}: {reason.lower()}") from error
    cluster = read_topology(text, str(file))
    return cluster if hub is None else _with_hub(cluster, hub)


def topology_of_mesh(opened: OpenPack, tell: Callable[[str], None]) -> MeshFacts:
    """The boards that answer now, with this one as hub, and what they have of the pack.

    Raises AccessError if this board is in no cluster, MeshError if its daemon does not run.
    """
    identity = load_identity(cluster_folder(os.environ))
    with ExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.destroy, linger=0)
        directory = BoardDirectory(context, identity, tell)
        stack.callback(directory.close)
        cluster, pack = directory.refresh(), opened.pack
        loaded = loaded_shards(directory, pack, opened.options)
        return MeshFacts(cluster, locate_shards(directory, pack), loaded)


def _with_hub(cluster: Topology, name: str) -> Topology:
    names = [board.name for board in cluster.boards]
    if name not in names:
        raise UsageError(
            f"there is no board {name!r} to be the hub", f"there are: {', '.join(names)}"
        )
    hub = names.index(name)
    known = {i for pair in cluster.links if hub in pair for i in pair} | {hub}
    if cluster.link is None and len(known) < len(names):
        missing = next(other for i, other in enumerate(names) if i not in known)
        raise UsageError(
            f"nothing is known of the link between {name} and {missing}",
            "add it to links, or a link for every pair",
        )
    return dataclasses.replace(cluster, hub=hub)


def _limited(cluster: Topology, memory_bytes: int | None) -> Topology:
    if memory_bytes is None:
        return cluster
    boards, hub = list(cluster.boards), cluster.boards[cluster.hub]
    budget = min(hub.budget_bytes, memory_bytes)
    boards[cluster.hub] = dataclasses.replace(hub, budget_bytes=budget)
    return dataclasses.replace(cluster, boards=tuple(boards))
