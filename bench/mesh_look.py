"""On a board of the lab: `python -m bench.mesh_look BOARDS SECONDS` waits until so many are seen.

The last line is what they and the links can do, as `cluster_facts.Cluster` has it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

import zmq

from picoedge.errors import MeshError
from picoedge.jobs.boards import BoardDirectory
from picoedge.mesh.identity.identity import cluster_folder, load_identity

LOOK_S = 0.2


def main(boards: int, seconds: float) -> int:
    """0 once all are there; 1 if they never come."""
    context = zmq.Context()
    said: list[str] = []
    directory = BoardDirectory(context, load_identity(cluster_folder(os.environ)), said.append)
    try:
        return _look(directory, boards, time.monotonic() + seconds, said.append)
    finally:
        print(*said[-3:], sep="\n", file=sys.stderr)
        directory.close()
        context.destroy(linger=0)


def _look(
    directory: BoardDirectory, boards: int, deadline: float, tell: Callable[[str], None]
) -> int:
    while time.monotonic() < deadline:
        try:
            seen = directory.refresh()
        except MeshError as error:
            tell(error.message)
        else:
            if len(seen.boards) >= boards:
                print(json.dumps(seen.to_json()))
                return 0
        time.sleep(LOOK_S)
    tell(f"{len(directory.handles)} boards of {boards}")
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
