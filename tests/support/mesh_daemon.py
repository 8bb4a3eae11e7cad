"""A daemon as a process of its own: `python mesh_daemon.py FOLDER [PEER...]`, until SIGTERM."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import zmq

from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.cluster_folder import published_daemon
from picoedge.mesh.identity.identity import load_identity
from picoedge.mesh.identity.roster import RosterFile
from picoedge.mesh.node.node import Node


def resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def main(folder: Path, peers: list[str]) -> None:
    context = zmq.Context()
    identity, rosters = load_identity(folder), RosterFile(folder)
    seeds = [parse_address(peer) for peer in peers]
    node = Node(context, identity, rosters, Address("127.0.0.1", 0), seeds)
    node.peers.report = lambda: {"stalled_on": "disk"}
    node.rpc.on("memory", lambda peer, body: {"resident_kb": resident_kb()})
    node.rpc.on("modules", lambda peer, body: {"modules": sorted(sys.modules)})
    signal.signal(signal.SIGTERM, lambda *_: node.stop())
    try:
        with published_daemon(folder, node.address, node.peers.incarnation):
            print(json.dumps({"address": str(node.address)}), flush=True)
            node.run()
    finally:
        node.close()
        context.term()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
