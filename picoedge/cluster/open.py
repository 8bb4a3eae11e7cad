"""A model opened over the mesh, from this board."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zmq

from picoedge.cluster.model import ClusterModel
from picoedge.jobs.boards import BoardDirectory
from picoedge.mesh.identity.identity import cluster_folder, load_identity

if TYPE_CHECKING:
    from picoedge.engine.adapt import Adapter
    from picoedge.engine.options import OpenOptions
    from picoedge.planner.memory import MemoryPlan
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack


@dataclass(frozen=True, eq=False)
class Joint:
    """A model that runs over boards; the plan and the adapter are those of this board's slice."""

    pack: Pack
    model: ClusterModel

    @property
    def plan(self) -> MemoryPlan | None:
        """See `loader.LoadedModel`."""
        return self.model.opened.plan

    @property
    def adapter(self) -> Adapter | None:
        """See `loader.LoadedModel`."""
        return self.model.opened.adapter


def open_joint(pack: Pack, options: OpenOptions, progress: Progress | None = None) -> Joint:
    """The model over the boards that are the quickest together; see `ClusterModel`.

    Raises AccessError where this board is in no cluster, MeshError where its daemon does not run.
    """
    identity = load_identity(cluster_folder(os.environ))
    with ExitStack() as failing:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        failing.callback(context.destroy, linger=0)
        directory = BoardDirectory(context, identity, _to_stderr)
        failing.callback(directory.close)
        model = ClusterModel(directory, pack, options, tell=_to_stderr, progress=progress)
        failing.pop_all()
    return Joint(pack, model)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
