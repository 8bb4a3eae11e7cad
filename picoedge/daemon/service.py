"""The daemon of `picoedge run`: this board's membership, its shards for others, its jobs.

    mesh-state   every board of the cluster as this one sees it, and its addresses. Where a page
                 is not all, its "next" is the "from" of the request for the next one
    pack-offer   a group of this board runs a pack outside the shelf: others may pull its shards
    ping         an answer of so many bytes, to measure a link with

The board's control process: small, without weights or NumPy, and never blocked for long.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.daemon.board import BoardService
from picoedge.daemon.job_kinds import JOB_KINDS, JobKinds
from picoedge.daemon.memory.board_memory import BoardOptions
from picoedge.daemon.memory.hub_slice import MemorySocket
from picoedge.daemon.self_measurement import SelfMeasurement
from picoedge.errors import AccessError, ModelError
from picoedge.fields import Fields
from picoedge.host.resources import give_back, rss_bytes
from picoedge.jobs.status import PRESENT, page_of, read_report
from picoedge.mesh.cluster_folder import published_daemon
from picoedge.mesh.node.finder import MAX_BOARDS
from picoedge.mesh.node.reachability import Reachability
from picoedge.mesh.transfer.donor import Donor
from picoedge.mesh.transfer.pack_provider import PackShelf
from picoedge.mesh.transport.frames import Header, Kind
from picoedge.mesh.transport.listening import ANY_PORT
from picoedge.mesh.transport.messages import PING_BYTES, RawReply

if TYPE_CHECKING:
    from picoedge.mesh.node.liveness import Change
    from picoedge.mesh.node.node import Node
    from picoedge.mesh.transport.messages import Body

# Between looks at the daemon's own memory, and the growth that a pass over its heap is worth.
GIVE_BACK_S, GIVE_BACK_BYTES = 3.0, 128 << 10


class Daemon:
    """Handlers of `node` beyond membership. Call `close` when the node has ended."""

    def __init__(self, node: Node, options: BoardOptions, kinds: JobKinds = JOB_KINDS) -> None:
        self._node, self._options = node, options
        self._packs = PackShelf([options.shelf])
        self.board = BoardService(node, options, self._facts, self._find_pack, kinds)
        node.rpc.on("mesh-state", lambda peer, body: self._mesh_state(body))
        node.rpc.on("ping", _ping)
        ports = options.ports
        reachable_at = range(ports[0], ports[1] + 1) if ports else ANY_PORT
        self._reachability = Reachability(node, reachable_at)
        node.rpc.on("pack-offer", self._offer_pack)
        for kind, handler in Donor(self._packs.find).handlers().items():
            node.rpc.on(kind, handler)
        node.peers.liveness.on_change(self._tell_change)
        node.peers.read_report = read_report
        self._resources = ExitStack()
        folder, incarnation = node.identity.folder, node.peers.incarnation
        self._resources.enter_context(published_daemon(folder, node.address, incarnation))
        try:
            socket = MemorySocket(folder, node.rpc.loop, self.board.memory_requests.on_request)
            self._resources.callback(socket.close)
        except OSError as error:  # a file system without sockets
            node.rpc.log(f"no slice of this board's own sessions is kept: {error.strerror}")
        self._measurement = SelfMeasurement(
            node.rpc.loop, self.board.memory, folder, options, node.rpc.log
        )
        self._settled_bytes = rss_bytes()
        node.rpc.loop.after(GIVE_BACK_S, self._give_back)

    def _give_back(self) -> None:
        """Large messages leave holes in the memory of a process that runs for months."""
        self._node.rpc.loop.after(GIVE_BACK_S, self._give_back)
        if rss_bytes() > self._settled_bytes + GIVE_BACK_BYTES:
            give_back()
            self._settled_bytes = rss_bytes()

    def _offer_pack(self, peer: str, body: Body) -> None:
        if str(peer) != self._node.identity.keys.public:
            raise AccessError("only this board's own sessions say what it offers")
        self._packs.add(Path(Fields(body).text("folder", 4096)))

    def _find_pack(self, identity: str) -> Path | None:
        """The folder of a pack, whole or in part; None if this board has none of it."""
        try:
            return self._packs.find(identity).folder
        except ModelError:
            return None

    def _facts(self) -> Mapping[str, Any] | None:
        """What this board can do, with its name and key; None while nothing is known."""
        measured, own = self._measurement.facts, self._node.identity
        return measured and {**measured, "name": own.name, "key": own.keys.public}

    # -- the mesh ------------------------------------------------------------------------------

    def _mesh_state(self, body: Body) -> Body:
        first = Fields(body).integer("from", 0, MAX_BOARDS) if "from" in body else 0
        node, peers = self._node, self._node.peers
        own: Body = {
            "name": node.name_of(node.identity.keys.public),
            "key": node.identity.keys.public,
            "addresses": [self._own_address],
            "condition": "alive",
            "report": self.board.report(),
        }
        others = [
            {
                "name": node.name_of(key),
                "key": key,
                "addresses": [str(address) for address in peers.addresses_of(key)],
                "condition": member.condition.value,
                "report": member.report,
            }
            for key, member in sorted(peers.liveness.members.items())
        ]
        # An earlier version asks for one page only: boards that are here come first.
        others.sort(key=lambda board: board["condition"] not in PRESENT)
        return {"cluster": node.roster.cluster.name, **page_of([own, *others], first)}

    @property
    def _own_address(self) -> str:
        address, announced = self._node.address, self._node.peers.addresses
        if announced:
            return str(announced[0])
        return f"127.0.0.1:{address.port}" if address.is_everywhere else str(address)

    def _tell_change(self, key: str, change: Change) -> None:
        name = self._node.name_of(key)
        self._node.rpc.log(f"{time.strftime('%H:%M:%S')} {name}: {change.value}", name)

    def close(self) -> None:
        """End the workers and the measurement. Idempotent."""
        self.board.close()
        self._reachability.close()
        self._measurement.close()
        self._resources.close()


def _ping(peer: str, body: Body) -> RawReply:
    nbytes = Fields(body).integer("bytes", 0, PING_BYTES)
    header = Header(Kind.SHARD, sequence=Fields(body).integer("id", 0, (1 << 32) - 1))
    return RawReply(header, bytes(nbytes))
