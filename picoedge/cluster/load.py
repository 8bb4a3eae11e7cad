"""Open a model over the boards of this cluster."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import zmq

from picoedge.cluster.resilient_model import ClusterModel
from picoedge.cluster.telling import Teller
from picoedge.engine.options import OpenOptions
from picoedge.jobs.boards import BoardDirectory
from picoedge.mesh.cluster_folder import cluster_folder
from picoedge.mesh.identity.identity import load_identity

if TYPE_CHECKING:
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack


def load_over_boards(
    pack: Pack, options: OpenOptions, progress: Progress | None = None
) -> ClusterModel:
    """The model over the boards that are the quickest together.

    Raises AccessError where this board is in no cluster, MeshError where its daemon does not run,
    and what `ClusterModel` raises.
    """
    assert options.cluster is not None
    identity = load_identity(cluster_folder(os.environ))
    with ExitStack() as failing:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        failing.callback(context.destroy, linger=0)
        tell = Teller(progress)
        directory = BoardDirectory(context, identity, tell, options.cluster.transport)
        failing.callback(directory.close)
        model = ClusterModel(directory, pack, options, tell, progress)
        model.assemble()
        failing.pop_all()
    return model
