"""A model opened over the mesh, from this board."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import zmq

from picoedge.engine.cluster_model import ClusterModel
from picoedge.engine.mesh_view import MeshView
from picoedge.mesh.identity import cluster_folder, load_identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from picoedge.engine.open_options import OpenOptions
    from picoedge.store.reader import Pack

    Progress = Callable[[str, int, int], None]


def open_joint(pack: Pack, options: OpenOptions, progress: Progress | None = None) -> ClusterModel:
    """The model over the boards that are the quickest together; see `ClusterModel`.

    Raises AccessError where this board is in no cluster, MeshError where its daemon does not run.
    """
    identity = load_identity(cluster_folder(os.environ))
    with ExitStack() as failing:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        failing.callback(context.destroy, linger=0)
        mesh = MeshView(context, identity, _to_stderr)
        failing.callback(mesh.close)
        model = ClusterModel(mesh, pack, options, tell=_to_stderr, progress=progress)
        failing.pop_all()
    return model


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
