"""Trial TCP connections from this board to another one, asked for by `picoedge doctor --cluster`.

    reach-board   "key": a board's. Try the addresses known of its daemon, and one port at which its
                  workers would listen
    reach-port    open such a port for a few seconds; the answer names it

Only boards that are let in may ask, and only ports of boards that are let in are tried: their
daemon's, at addresses that this board knows, and the port that the daemon has just named.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from picoedge.errors import MeshError, ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.addresses import Address, probe
from picoedge.mesh.identity.identity import read_key
from picoedge.mesh.interfaces import scoped
from picoedge.mesh.transport.listening import ANY_PORT, listen
from picoedge.mesh.transport.messages import Body, Pending

if TYPE_CHECKING:
    from picoedge.mesh.node.node import Node

TRY_S = 3.5  # TCP repeats a lost packet after one second, and again after three
OPEN_S = 8.0  # for the other board to hear of the port, and to try it
MOST_AT_ONCE = 8  # each takes a thread that waits
MOST_TRIED = 8  # addresses of one board


class Reachability:
    """Answers on `node`. `ports` are those at which workers listen."""

    def __init__(self, node: Node, ports: Sequence[int] = ANY_PORT) -> None:
        self._node, self._ports = node, ports
        self._tries = 0  # under way
        self._open: socket.socket | None = None
        node.rpc.on("reach-board", self._reach)
        node.rpc.on("reach-port", lambda peer, body: {"port": self._opened_port()})

    # -- this board is to be reached ---------------------------------------------------------------

    def _opened_port(self) -> int:
        """The port of a listener that is open for a while; 0 where none of `ports` is free.

        No thread accepts: the kernel completes the connection.
        """
        if self._open is None:
            try:
                self._open = listen(self._node.address.host, self._ports)
            except OSError:
                return 0
            self._node.rpc.loop.after(OPEN_S, self.close)
        port: int = self._open.getsockname()[1]
        return port

    def close(self) -> None:
        """Close the port that is open. Idempotent."""
        if self._open is not None:
            self._open.close()
            self._open = None

    # -- this board reaches another one ------------------------------------------------------------

    def _reach(self, peer: str, body: Body) -> Pending:
        node, key = self._node, read_key(Fields(body), "key")
        if key == node.identity.keys.public or not node.roster.is_allowed(key):
            raise MeshError("no other board of the cluster has that key", "picoedge keys show")
        if self._tries >= MOST_AT_ONCE:
            raise MeshError("this board tries to reach others already", "ask again in a while")
        self._tries += 1
        pending, reached = Pending(), node.peers.address_of(key)
        if reached is None:
            self._try(pending, key, None)
        else:
            host = reached.host

            def answered(answer: Body | MeshError) -> None:
                self._try(pending, key, _worker_address(host, answer))

            node.rpc.ask(key, "reach-port", {}, answered)
        return pending

    def _try(self, pending: Pending, key: str, worker: Address | None) -> None:
        """Try all addresses in a thread: connections that nothing answers take seconds."""
        known = self._node.peers.addresses_of(key)
        daemons = [at for address in known for at in scoped(address)][:MOST_TRIED]

        def run() -> None:
            closed = probe([*daemons, *([worker] if worker else [])], TRY_S)
            self._node.rpc.loop.soon(lambda: self._tried(pending, daemons, worker, closed))

        try:
            threading.Thread(target=run, name="reach", daemon=True).start()
        except RuntimeError:
            self._tries -= 1
            pending.answer(MeshError("this board has no thread left to try it"))

    def _tried(
        self,
        pending: Pending,
        daemons: Sequence[Address],
        worker: Address | None,
        closed: dict[Address, str],
    ) -> None:
        self._tries -= 1
        answer: Body = {"daemon": [_outcome(each, closed) for each in daemons]}
        if worker is not None:
            answer["worker"] = _outcome(worker, closed)
        pending.answer(answer)


def _outcome(address: Address, closed: dict[Address, str]) -> Body:
    return {"address": str(address), "why": closed.get(address, "")}


def _worker_address(host: str, answer: Body | MeshError) -> Address | None:
    """The port that the other daemon has opened; None if it has not, as an older one."""
    if isinstance(answer, MeshError):
        return None
    try:
        port = Fields(answer).integer("port", 1, 65535)
    except ProtocolError:
        return None
    return Address(host, port)
