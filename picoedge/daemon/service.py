"""`picoedge run`: this board in the mesh, its shards for others, its seat for sessions.

    mesh-state   every board of the cluster as this one sees it, and how it is reached
    pack-offer   a session of this board runs a pack that is not on the shelf: others may pull it
    ping         an answer as large as the question, to measure a link with

It is the board's control process: small, without weights and NumPy, never long at anything.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.daemon.board import BoardOptions, BoardService
from picoedge.errors import AccessError, ModelError
from picoedge.fields import Fields
from picoedge.mesh.node.local_daemon import DaemonFile
from picoedge.mesh.transfer.donor import Donor
from picoedge.mesh.transport.frames import Header, Kind, pack
from picoedge.mesh.transport.messages import PING_BYTES
from picoedge.mesh.transport.replies import RawReply

if TYPE_CHECKING:
    from picoedge.mesh.node.membership import Change
    from picoedge.mesh.node.node import Node
    from picoedge.mesh.transport.messages import Body

PROBE = "picoedge.daemon.board_probe"


class Daemon:
    """All that `node` answers beside who is in the mesh. `close` it when the node has ended."""

    def __init__(self, node: Node, options: BoardOptions) -> None:
        self._node, self._options = node, options
        self._donor = Donor([options.shelf])
        self.board = BoardService(node, options, lambda: self._facts, self._find_pack)
        self._facts: Mapping[str, Any] | None = None
        node.on("mesh-state", lambda peer, body: self._mesh_state())
        node.on("ping", _ping)
        node.on("pack-offer", self._offer_pack)
        for kind, handler in self._donor.handlers().items():
            node.on(kind, handler)
        node.peers.on_change(self._tell_change)
        self._file = DaemonFile(node.identity.folder)
        self._file.write(node.address, node.peers.incarnation)
        self._probe = self._start_probe()

    def _offer_pack(self, peer: str, body: Body) -> None:
        if str(peer) != self._node.identity.keys.public:
            raise AccessError("only this board's own sessions say what it offers")
        self._donor.add(Path(Fields(body).text("folder", 4096)))

    def _find_pack(self, identity: str) -> Path | None:
        """Where the pack is, or the part of it that this board has."""
        try:
            return self._donor.folder_of(identity)
        except ModelError:
            return None

    # -- what this board can do ----------------------------------------------------------------

    def _start_probe(self) -> subprocess.Popen[bytes]:
        threads = [] if self._options.threads is None else [str(self._options.threads)]
        probe = subprocess.Popen(
            [sys.executable, "-m", PROBE, str(self._options.shelf), *threads],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert probe.stdout is not None
        self._node.add(probe.stdout.fileno(), self._probed)
        return probe

    def _probed(self) -> None:
        """It prints a few hundred bytes, once."""
        assert self._probe.stdout is not None
        text = self._probe.stdout.read()
        self._node.remove(self._probe.stdout.fileno())
        self._probe.stdout.close()
        if self._probe.wait() != 0:
            return self._node.log_once("this board could not be measured: picoedge doctor")
        name, key = self._node.identity.name, self._node.identity.keys.public
        self._facts = {**json.loads(text), "name": name, "key": key}

    # -- the mesh ------------------------------------------------------------------------------

    def _mesh_state(self) -> Body:
        node, peers = self._node, self._node.peers
        boards: list[Body] = [
            {
                "name": node.identity.name,
                "key": node.identity.keys.public,
                "addresses": [self._own_address],
                "condition": "alive",
                "report": self.board.state(),
            }
        ]
        for key, member in peers.membership.members.items():
            boards.append(
                {
                    "name": node.name_of(key),
                    "key": key,
                    "addresses": [str(address) for address in peers.addresses_of(key)],
                    "condition": str(member.condition.value),
                    "report": dict(member.report),
                }
            )
        return {"cluster": node.roster.cluster.name, "boards": boards}

    @property
    def _own_address(self) -> str:
        address, told = self._node.address, self._node.peers.addresses
        if told:
            return str(told[0])
        return f"127.0.0.1:{address.port}" if address.is_everywhere else str(address)

    def _tell_change(self, change: Change) -> None:
        self._node.log_once(
            f"{time.strftime('%H:%M:%S')} {self._node.name_of(change.key)}: {change.what.value}"
        )

    # -- beginning and end ---------------------------------------------------------------------

    def close(self) -> None:
        """End what runs. Idempotent."""
        self.board.close()
        self._probe.kill()
        self._probe.wait()
        if self._probe.stdout is not None:
            self._probe.stdout.close()
        self._file.remove()


def _ping(peer: str, body: Body) -> RawReply:
    nbytes = Fields(body).integer("bytes", 0, PING_BYTES)
    header = Header(Kind.SHARD, sequence=Fields(body).integer("id", 0, (1 << 32) - 1))
    return RawReply(pack(header), bytes(nbytes))
