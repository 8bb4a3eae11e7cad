"""A daemon of wire version 1, to be run with the code of commit a8b77f2 on PYTHONPATH.

`python version1_daemon.py FOLDER SHELF [PEER...]`: answers as that version's `picoedge run` does,
until SIGTERM. "seen" returns what it has heard of the other boards.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import zmq
from picoedge.mesh.donor import Donor  # type: ignore[import-not-found]
from picoedge.mesh.roster_file import RosterFile  # type: ignore[import-not-found]

from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.identity import load_identity  # type: ignore[attr-defined]
from picoedge.mesh.node import Node  # type: ignore[attr-defined]


def main(folder: Path, shelf: Path, peers: list[str]) -> None:
    context = zmq.Context()
    seeds = [parse_address(peer) for peer in peers]
    rosters = RosterFile(folder)
    node = Node(context, load_identity(folder), rosters, Address("127.0.0.1", 0), seeds)
    node.peers.state = lambda: {"does": "free", "waiting": 3}

    def seen(peer: str, body: Any) -> dict[str, Any]:
        members = node.peers.membership.members.items()
        boards = {k: {"condition": m.condition.value, "report": dict(m.report)} for k, m in members}
        return {"boards": boards, "roster": rosters.roster.digest}

    def report(peer: str, body: Any) -> dict[str, Any]:
        node.push(peer, "session-queued", {"place": 1})
        return {"memory_bytes": 1 << 20}

    node.on("seen", seen)
    node.on("session-take", report)
    node.on("mesh-state", lambda peer, body: {"cluster": "desk", "boards": [
        {"name": "old", "report": {"waiting": 3}}]})  # fmt: skip
    for kind, handler in Donor([shelf]).handlers().items():
        node.on(kind, handler)
    signal.signal(signal.SIGTERM, lambda *_: node.stop())
    print(json.dumps({"address": str(node.address)}), flush=True)
    try:
        node.run()
    finally:
        node.close()
        context.term()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
