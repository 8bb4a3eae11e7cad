"""The daemon's other half: what this board does for the sessions of the mesh, one at a time.

    board-facts     what it can do, measured here
    session-open    take a seat: the answer, with the port of the data socket, comes when the
                    board is free; a second session of one connection takes the place of its first
    session-lend    the same for a session typed on this board: nothing starts, its memory is free
    session-close   the seat is free again; so it is when the connection ends
    -> session-queued, session-report, session-ended    what is told to who holds or waits

A session belongs to the connection it was asked for over. The daemon loads no weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.engine.process import rss_bytes
from picoedge.engine.running_worker import RunningWorker
from picoedge.engine.session_spec import SessionSpec, spec_from_json
from picoedge.engine.worker_order import Order
from picoedge.errors import AccessError, MeshError, ModelError, ProtocolError
from picoedge.mesh.answers import Deferred
from picoedge.mesh.door import Asker

if TYPE_CHECKING:
    from picoedge.mesh.messages import Body
    from picoedge.mesh.node import Node

REPORT_S = 0.25
MOST_WAITING = 32
GROWTH_BYTES = 4 << 20  # of the daemon, while a session runs


@dataclass(frozen=True)
class BoardOptions:
    """What this board gives: bytes of memory for all of picoedge on it, and where its packs are."""

    memory_bytes: int
    shelf: Path
    threads: int | None = None


@dataclass(eq=False)
class Seat:
    """Who holds this board or waits for it. `spec` is None where the board is lent to itself."""

    asker: Asker
    spec: SessionSpec | None
    answer: Deferred
    worker: RunningWorker | None = None


class BoardService:
    """Answers for this board on `node`. `facts` says what the board can do, when it is known."""

    def __init__(
        self,
        node: Node,
        options: BoardOptions,
        facts: Callable[[], Mapping[str, Any] | None],
        find_pack: Callable[[SessionSpec], Path | None],
    ) -> None:
        self._node, self._options = node, options
        self._facts, self._find_pack = facts, find_pack
        self._held: Seat | None = None
        self._waiting: deque[Seat] = deque()
        node.on("board-facts", lambda peer, body: self._tell_facts())
        node.on("session-open", self._open)
        node.on("session-lend", self._lend)
        node.on("session-close", self._close)
        node.on_gone(self._gone)
        node.peers.state = self.state
        node.after(REPORT_S, self._report)

    # -- what is asked -------------------------------------------------------------------------

    def _tell_facts(self) -> Body:
        facts = self._facts()
        if facts is None:
            raise MeshError("this board is still being measured", "ask again in a few seconds")
        own = rss_bytes() + GROWTH_BYTES
        return {"facts": dict(facts), "memory_bytes": max(0, self._options.memory_bytes - own)}

    def _open(self, peer: str, body: Body) -> Deferred:
        spec = spec_from_json(body.get("spec"))
        seats = {seat.key: rank for rank, seat in enumerate(spec.seats)}
        if seats.get(str(peer)) != 0 or seats.get(self._node.identity.keys.public) != spec.rank:
            raise ProtocolError("a session whose hub does not ask, or not for this board")
        strangers = [seat.name for seat in spec.seats if not self._node.roster.is_allowed(seat.key)]
        if strangers:
            raise AccessError(f"{strangers[0]} is not let in here", "picoedge keys show")
        return self._take(Seat(_asker(peer), spec, Deferred()))

    def _lend(self, peer: str, body: Body) -> Deferred:
        if str(peer) != self._node.identity.keys.public:
            raise AccessError("memory is lent to this board's own sessions only")
        return self._take(Seat(_asker(peer), None, Deferred()))

    def _close(self, peer: str, body: Body) -> None:
        self._gone(_asker(peer))

    def _take(self, seat: Seat) -> Deferred:
        if self._held is not None and self._held.asker.route == seat.asker.route:
            self._free()
        if self._held is None and not self._waiting:
            self._begin(seat)
            return seat.answer
        if len(self._waiting) >= MOST_WAITING:
            raise MeshError("too many sessions wait for this board", "try again later")
        self._waiting.append(seat)
        self._tell_places()
        return seat.answer

    def _tell_places(self) -> None:
        held = self._held
        before = self._node.name_of(str(held.asker)) if held else ""
        for place, seat in enumerate(self._waiting, 1):
            self._node.push(seat.asker, "session-queued", {"place": place, "held_by": before})

    # -- holding -------------------------------------------------------------------------------

    def _begin(self, seat: Seat) -> None:
        self._held = seat
        if seat.spec is None:
            seat.answer.answer({"memory_bytes": self._memory_bytes()})
            return
        try:
            order = self._order(seat.spec)
        except MeshError as error:
            return self._refuse(seat, error)
        except ModelError as error:
            return self._refuse(seat, MeshError(error.message, error.hint))
        worker = RunningWorker(order, lambda line: self._heard(seat, line))
        seat.worker = worker
        self._node.add(worker.stdout.fileno(), lambda: self._read(seat))
        self._node.add(worker.pidfd, lambda: self._ended(seat))

    def _order(self, spec: SessionSpec) -> Order:
        pack = self._find_pack(spec)
        if pack is None:
            raise ModelError(f"{spec.pack_name} is not on this board", "")
        host = self._node.address.host
        return Order(spec, pack, host, Path(), self._memory_bytes(), self._options.threads)

    def _memory_bytes(self) -> int:
        return max(0, self._options.memory_bytes - rss_bytes() - GROWTH_BYTES)

    def _refuse(self, seat: Seat, error: MeshError) -> None:
        seat.answer.answer(error)
        self._free()
        self._next()

    def _heard(self, seat: Seat, line: Mapping[str, Any]) -> None:
        if "port" in line:
            seat.answer.answer({"port": line["port"]})

    def _read(self, seat: Seat) -> None:
        if seat.worker is not None and not seat.worker.read():
            self._node.remove(seat.worker.stdout.fileno())

    def _ended(self, seat: Seat) -> None:
        """The worker is gone: tell why, before the hub wonders."""
        assert seat.worker is not None
        why = seat.worker.why_ended()
        seat.answer.answer(MeshError(why["message"], why["hint"]))
        if seat.spec is not None:
            self._node.push(seat.asker, "session-ended", {"session": seat.spec.session, **why})
        self._free()
        self._next()

    def _free(self) -> None:
        """Nobody holds the board; what ran for who did is ended."""
        seat, self._held = self._held, None
        if seat is not None and seat.worker is not None:
            self._node.remove(seat.worker.stdout.fileno())
            self._node.remove(seat.worker.pidfd)
            seat.worker.end()
            seat.worker = None

    def _next(self) -> None:
        while self._waiting and self._held is None:
            self._begin(self._waiting.popleft())
        self._tell_places()

    def _gone(self, asker: Asker) -> None:
        self._waiting = deque(s for s in self._waiting if s.asker.route != asker.route)
        if self._held is not None and self._held.asker.route == asker.route:
            self._free()
            self._next()

    # -- what is told --------------------------------------------------------------------------

    def _report(self) -> None:
        self._node.after(REPORT_S, self._report)
        seat = self._held
        if seat is not None and seat.worker is not None and seat.spec is not None:
            report = {"session": seat.spec.session, **seat.worker.report()}
            self._node.push(seat.asker, "session-report", report)

    def state(self) -> Body:
        """This board in a few words, for its heartbeats."""
        seat = self._held
        state: Body = {
            "memory_bytes": self._options.memory_bytes,
            "rss_bytes": rss_bytes(),
            "waiting": len(self._waiting),
        }
        if seat is None:
            return {**state, "does": "free"}
        state["for"] = self._node.name_of(str(seat.asker))
        if seat.worker is None or seat.spec is None:
            return {**state, "does": "hub"}
        report, part = seat.worker.report(), seat.spec.part
        state["rss_bytes"] += report["rss_bytes"]
        return {
            **state,
            "does": report["stage"],
            "how": report["state"],
            "model": seat.spec.pack_name,
            "attention": [part.attention.start, part.attention.stop],
            "ffn": [part.ffn.start, part.ffn.stop],
        }

    def close(self) -> None:
        """End what runs."""
        self._waiting.clear()
        self._free()


def _asker(peer: str) -> Asker:
    if not isinstance(peer, Asker):
        raise ProtocolError("a session is asked for over a connection of its own")
    return peer
