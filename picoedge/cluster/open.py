"""Load a model on this board, or over several boards of the cluster."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from picoedge.engine.open import load_model

if TYPE_CHECKING:
    from picoedge.cluster.model import ClusterModel
    from picoedge.engine.options import OpenOptions
    from picoedge.engine.session import LanguageModel
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack


def load_anywhere(
    pack: Pack, options: OpenOptions, progress: Progress | None = None
) -> LanguageModel:
    """The model on this board, or with `options.cluster` over boards; see `engine.open.LoadModel`.

    Raises what `load_model` and `load_over_boards` raise.
    """
    if options.cluster is None:
        return load_model(pack, options, progress)
    return load_over_boards(pack, options, progress)


def load_over_boards(
    pack: Pack, options: OpenOptions, progress: Progress | None = None
) -> ClusterModel:
    """The model over the boards that are the quickest together.

    Raises AccessError where this board is in no cluster, MeshError where its daemon does not run,
    and what `ClusterModel` raises.
    """
    import zmq

    from picoedge.cluster.model import ClusterModel
    from picoedge.jobs.boards import BoardDirectory
    from picoedge.mesh.identity.identity import cluster_folder, load_identity

    identity = load_identity(cluster_folder(os.environ))
    with ExitStack() as failing:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        failing.callback(context.destroy, linger=0)
        directory = BoardDirectory(context, identity, _to_stderr)
        failing.callback(directory.close)
        model = ClusterModel.assemble(directory, pack, options, tell=_to_stderr, progress=progress)
        failing.pop_all()
    return model


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
