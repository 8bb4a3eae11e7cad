"""On a board of the lab: `python -m bench.mesh_look BOARDS SECONDS` waits until so many are seen.

The last line is what they and the links can do: a file of boards for `picoedge plan --boards`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import zmq

from picoedge.errors import MeshError
from picoedge.jobs.boards import BoardDirectory
from picoedge.mesh.cluster_folder import cluster_folder
from picoedge.mesh.identity.identity import load_identity
from picoedge.planner.topology import Topology

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
                print(json.dumps(_plain(seen)))
                return 0
        time.sleep(LOOK_S)
    tell(f"{len(directory.handles)} boards of {boards}")
    return 1


def _plain(seen: Topology) -> dict[str, Any]:
    names = [board.name for board in seen.boards]
    links = [
        {"between": [names[a], names[b]], **dataclasses.asdict(link)}
        for (a, b), link in seen.links.items()
    ]
    boards = [dataclasses.asdict(board) for board in seen.boards]
    return {"hub": names[seen.hub], "links": links, "boards": boards}


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
