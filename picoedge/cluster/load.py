"""Open a model over the boards of this cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import zmq

from picoedge.cluster.resilient_model import ClusterModel
from picoedge.engine.options import OpenOptions
from picoedge.jobs.boards import BoardDirectory
from picoedge.mesh.cluster_folder import cluster_folder
from picoedge.mesh.identity.identity import load_identity
from picoedge.sanitize import one_line

if TYPE_CHECKING:
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack


class Teller:
    """Writes lines to stderr, each on a line of its own."""

    def __init__(self, progress: Progress | None) -> None:
        """`progress` may have drawn on the line where the next one begins."""
        self._progress = progress
        self._clear: Callable[[], None] = lambda: None

    def __call__(self, line: str) -> None:
        """Write a line."""
        self._clear()
        if self._progress is not None:
            self._progress("", 0, 0)
        print(one_line(line), file=sys.stderr, flush=True)

    @contextmanager
    def clearing(self, clear: Callable[[], None]) -> Iterator[None]:
        """While the block runs, `clear` is called before each line."""
        before, self._clear = self._clear, clear
        try:
            yield
        finally:
            self._clear = before


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
