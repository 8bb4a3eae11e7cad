"""The mesh as a session sees it: which boards are there, how they are reached, what they can do."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from picoedge.daemon.service import PING_BYTES
from picoedge.errors import BoardLostError, MeshError, ProtocolError
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.node.local_daemon import find_local
from picoedge.mesh.transport.client import Caller
from picoedge.planner.topology import BoardFacts, Cluster, LinkFacts, board_from_json

if TYPE_CHECKING:
    from picoedge.mesh.identity.identity import Identity
    from picoedge.mesh.transport.curve import Context

ASK_S = 2.0
MEASURING_S = 180.0  # a board that has just started measures itself first
PINGS = 8
_HERE = ("alive", "slow")


@dataclass(frozen=True)
class Peer:
    """A board of the mesh that answers, and what it can do."""

    key: str
    name: str
    address: str
    facts: BoardFacts
    link: LinkFacts


class MeshView:
    """Connections to the daemons of all boards that answer; the first is this board's own.

    `tell` is given lines for people. To be closed.
    """

    def __init__(self, context: Context, identity: Identity, tell: Callable[[str], None]) -> None:
        self.context, self.identity, self._tell = context, identity, tell
        self.callers: dict[str, Caller] = {}
        self.peers: dict[str, Peer] = {}
        self._fixed_bytes = _own_fixed_bytes()

    def look(self, without: frozenset[str] = frozenset()) -> Cluster:
        """Connect to every board that is there, save those; what they and the links can do.

        The others are in the order of their names: shares that are asked for must mean the same
        boards every time.

        Raises MeshError where no daemon runs on this board.
        """
        self.close()
        own = self._own()
        self._meet(own, self.identity.keys.public, str(own.address), LinkFacts(0.0, 1e12))
        self._own_ping_s = min(_pings_s(own, 0, PINGS))
        boards = _boards_of(own.ask("mesh-state", timeout_s=ASK_S))
        for board in sorted(boards, key=lambda board: (board["name"], board["key"])):
            if board["key"] == self.identity.keys.public or board["key"] in without:
                continue
            if board["condition"] in _HERE:
                self._try(board)
        return self.cluster()

    @property
    def own(self) -> Peer:
        """This board."""
        return self.peers[self.identity.keys.public]

    def cluster(self) -> Cluster:
        """The boards that answered, this one first."""
        peers = list(self.peers.values())
        links = {(0, i): peer.link for i, peer in enumerate(peers) if i}
        own, *others = (peer.facts for peer in peers)
        # A hub takes more than its daemon could measure: its tokenizer, and what plans.
        own = dataclasses.replace(own, fixed_bytes=max(own.fixed_bytes, self._fixed_bytes))
        return Cluster((own, *others), links)

    def _own(self) -> Caller:
        daemon, keys = find_local(self.identity.folder), self.identity.keys
        if daemon is None:
            raise MeshError(
                "this board is not in the mesh: its daemon does not run", "start it: picoedge run"
            )
        return Caller(self.context, keys, daemon.address, keys.public, self.identity.name)

    def _try(self, board: dict[str, Any]) -> None:
        for text in board["addresses"]:
            address = parse_address(text)
            caller = Caller(self.context, self.identity.keys, address, board["key"], board["name"])
            try:
                link = _measure(caller, self._own_ping_s)
                return self._meet(caller, board["key"], text, link)
            except MeshError as error:
                caller.close()
                self._tell(f"{board['name']} takes no part: {error.message}")

    def _meet(self, caller: Caller, key: str, address: str, link: LinkFacts) -> None:
        with ExitStack() as failing:
            failing.callback(caller.close)
            facts = _facts(caller)
            if facts.key != key:
                raise ProtocolError(f"{caller.name} speaks for another board")
            failing.pop_all()
        self.callers[key] = caller
        self.peers[key] = Peer(key, facts.name, address, facts, link)

    def close(self) -> None:
        """Let all connections go: what they held is free again. Idempotent."""
        for caller in self.callers.values():
            caller.close()
        self.callers.clear()
        self.peers.clear()


def _own_fixed_bytes() -> int:
    """What this process takes, a model apart."""
    from picoedge.engine.fit import fixed_bytes
    from picoedge.host.reclaim import STILL_NEEDED, settle

    settle()
    return fixed_bytes() + STILL_NEEDED


def _boards_of(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The own daemon's list; it has checked what other boards said."""
    boards = state.get("boards")
    if not isinstance(boards, list):
        raise ProtocolError("a state of the mesh without boards")
    return boards


def _facts(caller: Caller) -> BoardFacts:
    deadline = time.monotonic() + MEASURING_S
    while True:
        try:
            answer = caller.ask("board-facts", timeout_s=ASK_S)
        except BoardLostError:
            raise
        except MeshError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
            continue
        facts = answer.get("facts")
        if not isinstance(facts, dict):
            raise ProtocolError(f"{caller.name} sent no facts")
        given = {**facts, "budget_bytes": answer.get("memory_bytes")}
        return board_from_json(given, f"the facts of {caller.name}")


def _pings_s(caller: Caller, nbytes: int, count: int) -> list[float]:
    return [_ping_s(caller, nbytes) for _ in range(count)]


def _measure(caller: Caller, own_s: float) -> LinkFacts:
    return link_of(_pings_s(caller, 0, PINGS), _pings_s(caller, PING_BYTES, 2), own_s)


def link_of(small_s: Sequence[float], large_s: Sequence[float], own_s: float) -> LinkFacts:
    """What a link adds to small and large questions; a small one to this board takes `own_s`.

    The slowest do not count: what stops a board, as its quota does while it starts, is longer than
    any link, and the link's own worst moments are not what is usual.
    """
    small = sorted(small_s)[len(small_s) // 4]
    latency = min(max(0.0, small - own_s) / 2, 60.0)
    return LinkFacts(latency, PING_BYTES / max(min(large_s) - small, 1e-6))


def _ping_s(caller: Caller, nbytes: int) -> float:
    began = time.perf_counter()
    caller.ask_raw("ping", {"bytes": nbytes}, ASK_S)
    return time.perf_counter() - began
