"""The daemon's share of jobs: reserve this board, start and watch a worker, report how it does.

    board-facts    what it can do, measured here
    job-reserve    reserve this board; the answer comes when it is free. A group's hub reserves its
                   own board like any other: its memory is lent then, and no worker starts
    job-start      start a worker with its slice; again: in place of the last one
    job-release    free the board; so does the end of the connection
    -> job-queued, job-listens, job-report, job-ended    pushed to the holder
    -> job-revoked  a board's key was revoked: a holder whose group has that board ends it

A reservation belongs to a connection. The daemon loads no weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.cluster.spec import SessionSpec, spec_from_json
from picoedge.daemon.worker_process import RunningWorker
from picoedge.errors import AccessError, MeshError, ProtocolError
from picoedge.host.process import rss_bytes
from picoedge.host.thermal import Thermometer
from picoedge.jobs.spec import Order
from picoedge.mesh.transport.replies import Pending
from picoedge.mesh.transport.server import Sender

if TYPE_CHECKING:
    from picoedge.mesh.node.node import Node
    from picoedge.mesh.transport.messages import Body

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
    """Who holds this board or waits for it, and the worker that was started for it."""

    asker: Sender
    taken: Pending
    told: Body = field(default_factory=dict)  # of its place in the queue, last
    spec: SessionSpec | None = None
    worker: RunningWorker | None = None


class BoardService:
    """Answers for this board on `node`. `facts` says what the board can do, once it is known.

    `find_pack` says where the pack of a session is, if it is here.
    """

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
        self._dying: list[RunningWorker] = []  # killed; what they held is not free yet
        node.on("board-facts", lambda peer, body: self._tell_facts())
        node.on("job-reserve", self._take)
        node.on("job-start", self._start)
        node.on("job-release", self._close)
        node.on_gone(self._gone)
        node.peers.on_revoked(self._revoked)
        self._thermometer = Thermometer()
        node.peers.state = self.state
        node.after(REPORT_S, self._report)

    # -- what is asked -------------------------------------------------------------------------

    def _tell_facts(self) -> Body:
        facts = self._facts()
        if facts is None:
            raise MeshError("this board is still being measured", "ask again in a few seconds")
        return {"facts": dict(facts), "memory_bytes": self._memory_bytes()}

    def _take(self, peer: str, body: Body) -> Pending:
        seat = Seat(_asker(peer), Pending())
        others = [*self._waiting, *([self._held] if self._held else [])]
        if any(other.asker.route == seat.asker.route for other in others):
            raise ProtocolError("a board taken twice over one connection")
        if len(self._waiting) >= MOST_WAITING:
            raise MeshError("too many sessions wait for this board", "try again later")
        self._waiting.append(seat)
        self._next()
        return seat.taken

    def _start(self, peer: str, body: Body) -> None:
        seat, asker = self._held, _asker(peer)
        if seat is None or seat.asker.route != asker.route:
            raise ProtocolError("a session on a board that it has not taken")
        spec = spec_from_json(body.get("spec"))
        self._check(asker, spec)
        self._stop_worker(seat)
        seat.spec = spec
        seat.worker = worker = RunningWorker(
            self._order(spec), lambda line: self._heard(seat, line)
        )
        self._node.add(worker.stdout.fileno(), lambda: self._read(seat, worker))
        self._node.add(worker.pidfd, lambda: self._ended(seat, worker))

    def _check(self, asker: Sender, spec: SessionSpec) -> None:
        seats = {seat.key: rank for rank, seat in enumerate(spec.seats)}
        if seats.get(str(asker)) != 0 or seats.get(self._node.identity.keys.public) != spec.rank:
            raise ProtocolError("a session whose hub does not ask, or not for this board")
        strangers = [seat.name for seat in spec.seats if not self._node.roster.is_allowed(seat.key)]
        if strangers:
            raise AccessError(f"{strangers[0]} is not let in here", "picoedge keys show")

    def _order(self, spec: SessionSpec) -> Order:
        host, memory = self._node.address.host, self._memory_bytes()
        shelf, threads = self._options.shelf, self._options.threads
        return Order(spec, self._find_pack(spec), shelf, host, Path(), memory, threads)

    def _memory_bytes(self) -> int:
        """What is left for a session."""
        return max(0, self._options.memory_bytes - rss_bytes() - GROWTH_BYTES)

    def _close(self, peer: str, body: Body) -> None:
        self._gone(_asker(peer))

    def _tell_places(self) -> None:
        """Tell who waits where it is in the queue, if that is news to it."""
        held = self._held
        before = self._node.name_of(str(held.asker)) if held else ""
        for place, seat in enumerate(self._waiting, 1):
            news: Body = {"place": place, "held_by": before}
            if news != seat.told:
                seat.told = news
                self._node.push(seat.asker, "job-queued", news)

    # -- holding -------------------------------------------------------------------------------

    def _next(self) -> None:
        """The board goes to who waits longest, where it is free."""
        if self._held is None and self._waiting and not self._dying:
            self._held = self._waiting.popleft()
            self._held.taken.answer({"memory_bytes": self._memory_bytes()})
        self._tell_places()

    def _gone(self, asker: Sender) -> None:
        self._waiting = deque(s for s in self._waiting if s.asker.route != asker.route)
        if self._held is not None and self._held.asker.route == asker.route:
            self._stop_worker(self._held)
            self._held = None
        self._next()

    def _revoked(self, key: str) -> None:
        if self._held is not None:
            self._node.push(self._held.asker, "job-revoked", {"key": key})

    def _stop_worker(self, seat: Seat) -> None:
        """Kill it. One that is at its disk is gone when that answers: nobody waits for it here."""
        worker, seat.worker = seat.worker, None
        if worker is not None:
            self._node.remove(worker.stdout.fileno())
            self._node.remove(worker.pidfd)
            worker.kill()
            self._dying.append(worker)
            self._node.add(worker.pidfd, lambda: self._bury(worker))

    def _bury(self, worker: RunningWorker) -> None:
        self._node.remove(worker.pidfd)
        self._dying.remove(worker)
        worker.end()
        self._next()

    def _heard(self, seat: Seat, line: Mapping[str, Any]) -> None:
        if "port" in line and seat.spec is not None:
            listens = {"session": seat.spec.session, "port": line["port"]}
            self._node.push(seat.asker, "job-listens", listens)
        if isinstance(line.get("failed"), dict) and seat.spec is not None:
            # told at once: as long as a disk does not answer, who reads from it cannot end
            ended = {"session": seat.spec.session, **RunningWorker.why_failed(line["failed"])}
            self._node.push(seat.asker, "job-ended", ended)

    def _read(self, seat: Seat, worker: RunningWorker) -> None:
        if seat.worker is worker and not worker.read():
            self._node.remove(worker.stdout.fileno())

    def _ended(self, seat: Seat, worker: RunningWorker) -> None:
        """The worker is gone: tell why, before the hub wonders."""
        if seat.worker is not worker or seat.spec is None:
            return
        ended = {"session": seat.spec.session, **worker.why_ended()}
        self._stop_worker(seat)
        self._node.push(seat.asker, "job-ended", ended)

    # -- what is told --------------------------------------------------------------------------

    def _report(self) -> None:
        self._node.after(REPORT_S, self._report)
        seat = self._held
        if seat is not None and seat.worker is not None and seat.spec is not None:
            report = {"session": seat.spec.session, **seat.worker.report()}
            self._node.push(seat.asker, "job-report", report)

    def state(self) -> Body:
        """This board in a few words, for its heartbeats."""
        seat, heat = self._held, self._thermometer.read()
        state: Body = {
            "memory_bytes": self._options.memory_bytes,
            "rss_bytes": rss_bytes(),
            "queue_length": len(self._waiting),
            "stalled_on": "",
            "temperature_c": heat.temperature_c,
            "throttled": heat.throttled,
        }
        if seat is None:
            return {**state, "does": "ending" if self._dying else "free"}
        state["for"] = self._node.name_of(str(seat.asker))
        if seat.worker is None or seat.spec is None:
            own = str(seat.asker) == self._node.identity.keys.public
            return {**state, "does": "hub" if own else "taken"}
        report, part = seat.worker.report(), seat.spec.part
        state["rss_bytes"] += report["rss_bytes"]
        return {
            **state,
            "does": report["stage"],
            "how": report["state"],
            "stalled_on": "disk" if report["state"] == "disk" else "",
            "model": seat.spec.pack_name,
            "attention": [part.attention.start, part.attention.stop],
            "ffn": [part.ffn.start, part.ffn.stop],
            "vocabulary": [part.vocabulary.start, part.vocabulary.stop],
            "work": report["work"],
        }

    def close(self) -> None:
        """End what runs."""
        self._waiting.clear()
        if self._held is not None:
            self._stop_worker(self._held)
            self._held = None
        for worker in self._dying:
            worker.end()


def _asker(peer: str) -> Sender:
    if not isinstance(peer, Sender):
        raise ProtocolError("a session is asked for over a connection of its own")
    return peer
