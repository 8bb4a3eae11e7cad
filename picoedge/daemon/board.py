"""The daemon's share of jobs: reserve this board, start and watch a worker, report how it does.

    board-facts    what it can do, measured here
    job-reserve    reserve this board in the foreground; the answer comes when it is free. A group's
                   hub reserves its own board like any other: its memory is lent, no worker starts.
                   What the same "session" (a number of a process) of the same key had reserved over
                   an earlier connection is freed: that connection may not know yet that it is dead
    job-start      start a worker with its slice, again: in place of the last one. A job of a
                   background kind needs no reservation: it is a run, and waits for its turn
    job-release    free the board, as the end of the connection does; with a "run", end that run
    -> job-queued, job-listens, job-report, job-ended    pushed to the holder, with its "group"
    -> job-revoked  a board's key was revoked: a holder whose group has that board ends it

`reservations` decides which job has the board, `memory.ledger` which claims end for another. The
daemon loads no weights; a worker whose group is over keeps its slice, until something else needs
the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.daemon.board_report import BoardReport, facts_answer
from picoedge.daemon.handover import Handover
from picoedge.daemon.job_kinds import JOB_KINDS, JobKinds, check_members, kind_of
from picoedge.daemon.memory.board_memory import DAEMON_GROWTH_BYTES, KEPT, BoardMemory, BoardOptions
from picoedge.daemon.memory.hub_slice import HubSlice, wanted_slice
from picoedge.daemon.memory.ledger import Use
from picoedge.daemon.memory.requests import MemoryRequests
from picoedge.daemon.relay import Relays
from picoedge.daemon.reservations import Action, Grant, Queued, Reservations, StartRun, Stop, User
from picoedge.daemon.worker_process import WorkerProcess
from picoedge.daemon.workers import KeptWorker, Reservation, Workers
from picoedge.errors import AccessError, MeshError, ProtocolError
from picoedge.jobs.spec import WorkerConfig, read_session
from picoedge.mesh.node.liveness import Change
from picoedge.mesh.transport.messages import Pending
from picoedge.mesh.transport.server import Sender

if TYPE_CHECKING:
    from picoedge.mesh.node.node import Node
    from picoedge.mesh.transport.messages import Body

REPORT_S = 0.25  # a hub gives up a stopped worker after a second: four reports


class BoardService:
    """Answers for this board on `node`. `facts` returns what it can do, None until measured.

    `find_pack` returns the folder of a pack by its identity, or None; `kinds` are the jobs that
    this board can run.
    """

    def __init__(
        self,
        node: Node,
        options: BoardOptions,
        facts: Callable[[], Mapping[str, Any] | None],
        find_pack: Callable[[str], Path | None],
        kinds: JobKinds = JOB_KINDS,
    ) -> None:
        self._node, self._options, self._kinds = node, options, kinds
        self._facts, self._find_pack = facts, find_pack
        self._reservations = Reservations()
        self._users: dict[User, Reservation] = {}
        self._workers = Workers(node.rpc.loop, self, keep=options.keep_s > 0)
        self._hub_slice = HubSlice()
        clock, folder = node.rpc.loop.clock, node.identity.folder
        self.memory = BoardMemory(options.memory_bytes, clock, node.name_of, folder)
        self.memory_requests = MemoryRequests(
            self.memory, self._hub_slice, self._workers, lambda: self._holder, self._is_own,
            self._end_kept, keeps=options.keep_s > 0,
        )  # fmt: skip
        self._waiting: list[Reservation] = []  # to start their workers when a kept slice is gone
        node.rpc.on("board-facts", self._board_facts)
        node.rpc.on("job-reserve", self._reserve)
        node.rpc.on("job-start", self._start)
        node.rpc.on("job-release", self._release)
        node.rpc.on_gone(lambda sender: self._gone(sender.route))
        node.peers.liveness.on_change(self._changed)
        self._relays = Relays(node.rpc, self._endpoint)
        self._handover = Handover(node.rpc, self._endpoint)
        self._reports = BoardReport(node.identity.keys.public, node.name_of)
        node.peers.report = self.report
        node.rpc.loop.after(REPORT_S, self._push_report)

    # -- requests ------------------------------------------------------------------------------

    def _board_facts(self, peer: str, body: Body) -> Body:
        own = self._hub_slice.kept if str(peer) == self._node.identity.keys.public else None
        kept, unreached = own or self._workers.kept, self._node.peers.unreached()
        answer = facts_answer(self._facts(), kept.key if kept else None, self._options.shelf)
        return {**answer, "memory_bytes": self.memory.job_bytes, "unreached": unreached}

    def _reserve(self, peer: str, body: Body) -> Pending:
        sender = _sender(peer)
        if sender.route in self._users:
            raise ProtocolError("a board taken twice over one connection")
        self._end_earlier(sender, session := read_session(body))
        if len(self._reservations.queue) >= self._node.rpc.limits.queued_jobs:
            raise MeshError("too many sessions wait for this board", "try again later")
        name, kind = kind_of(self._kinds, body)
        if kind.background:
            raise ProtocolError(f"a job of kind {name} runs in the background: start it")
        reservation = Reservation(
            sender.route, sender, Pending(), name, kind.module, session=session
        )
        self._users[sender.route] = reservation
        if self._is_own(reservation):
            reservation.wanted, kept = wanted_slice(body), self._hub_slice.kept
            if kept is None or kept.key != reservation.wanted:
                self._end_kept()  # the hub's process takes this board's memory when it is granted
        self._do(self._reservations.reserve(sender.route))
        return reservation.granted

    def _end_earlier(self, sender: Sender, session: str) -> None:
        """End what that session of that key has over another connection. "" is no session."""
        for other in list(self._users.values()):
            is_earlier = isinstance(other.user, bytes) and str(other.sender) == str(sender)
            if is_earlier and session and other.session == session:
                self._node.rpc.server.disconnect(other.sender)
                self._gone(other.sender.route)

    def _start(self, peer: str, body: Body) -> None:
        sender = _sender(peer)
        name, kind = kind_of(self._kinds, body)
        if not kind.background and self._reservations.holder != sender.route:
            raise ProtocolError("a job on a board that is not reserved for it")
        spec = kind.read_spec(body.get("spec"))
        check_members(spec, str(sender), self._node.identity.keys.public, self._node.roster)
        if kind.background:
            return self._add_run(Reservation(spec.id, sender, Pending(), name, kind.module, spec))
        reservation = self._users[sender.route]
        self._workers.stop(reservation)
        reservation.job, reservation.module, reservation.spec = name, kind.module, spec
        self._start_worker(reservation)
        self._do(self._reservations.worker_started(sender.route))

    def _add_run(self, reservation: Reservation) -> None:
        if reservation.user in self._users:
            raise MeshError("this run is on this board already", "release it first")
        key, limits = str(reservation.sender), self._node.rpc.limits
        theirs = [run for run in self._reservations.runs if str(self._users[run].sender) == key]
        if len(self._reservations.runs) >= limits.runs or len(theirs) >= limits.runs_per_key:
            raise MeshError("too many runs wait for this board", "end one of them")
        assert isinstance(reservation.user, str)
        self._users[reservation.user] = reservation
        self._do(self._reservations.add_run(reservation.user))

    def _release(self, peer: str, body: Body) -> None:
        sender, run = _sender(peer), body.get("run")
        if run is None:
            return self._gone(sender.route)
        reservation = self._users.get(str(run))
        own = self._node.identity.keys.public
        if reservation is None or str(sender) not in (str(reservation.sender), own):
            raise AccessError("this board runs no such job of the board that asks", "picoedge ps")
        self._end_run(reservation)

    # -- reservations --------------------------------------------------------------------------

    @property
    def _holder(self) -> Reservation | None:
        """The reservation that has the board now, foreground or background."""
        user = self._reservations.user
        return None if user is None else self._users.get(user)

    def _is_own(self, reservation: Reservation) -> bool:
        """Whether this board is the hub: its own process then has the memory."""
        return str(reservation.sender) == self._node.identity.keys.public

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Grant(connection):
                    self._grant(self._users[connection])
                case StartRun(run):
                    self._start_run(self._users[run])
                case Stop(str(user)):
                    self._workers.stop(self._users[user])
                case Stop(user):
                    self._workers.let_go(self._users[user])
                case Queued(connection, place, holder):
                    name = self._name_of(holder)
                    self._push_newest(self._users[connection], "queued", place=place, holder=name)

    def _grant(self, reservation: Reservation) -> None:
        if self._is_own(reservation):
            self._give_memory(reservation, Use.ANSWER)
        reservation.granted_s = self.memory.now_s
        reservation.granted.answer({"memory_bytes": self.memory.job_bytes})

    def _name_of(self, user: bytes | None) -> str:
        known = None if user is None else self._users.get(user)
        return self._node.name_of(str(known.sender)) if known else ""

    def _gone(self, route: bytes) -> None:
        """Free what a connection had reserved or queued for; runs go on without theirs."""
        if route in self._users:
            if route not in self._reservations.workers:
                self._leave_memory(self._users[route])
            self._do(self._reservations.release(route))
            del self._users[route]

    def _leave_memory(self, reservation: Reservation) -> None:
        """A job without a worker is over: this board's own session may have left its slice."""
        is_own = reservation is self._holder and self._is_own(reservation)
        left = self._hub_slice.settle() if is_own else None
        if left is None:
            return self.memory.release(reservation.user)
        self.memory.keep(reservation, left.nbytes, left.model)
        self._do(self._reservations.let_runs_wait(True))

    def _end_run(self, reservation: Reservation) -> None:
        assert isinstance(reservation.user, str)
        self._do(self._reservations.end_run(reservation.user))
        self._users.pop(reservation.user, None)

    def _changed(self, key: str, change: Change) -> None:
        if change is not Change.REVOKED:
            return
        for reservation in list(self._users.values()):
            members = () if reservation.spec is None else reservation.spec.members
            keys = {str(reservation.sender), *(member for member, _ in members)}
            if isinstance(reservation.user, str) and key in keys:
                name = self._node.name_of(key)
                self._push(reservation, "ended", message=f"the key of {name} was revoked")
                self._end_run(reservation)
            elif reservation is self._holder:
                self._node.rpc.push(reservation.sender, "job-revoked", {"key": key})

    # -- what becomes of workers ----------------------------------------------------------------

    def _config(self, reservation: Reservation) -> WorkerConfig:
        assert reservation.spec is not None
        pack, nbytes = self._find_pack(reservation.spec.pack_id), self.memory.job_bytes
        return self._options.worker_config(reservation, self._node, pack, nbytes)

    def _start_worker(self, reservation: Reservation) -> None:
        """Go on with a kept slice, or start a worker as soon as the memory of one is free."""
        config = self._config(reservation)
        is_adopted = self._workers.adopt(reservation, config, DAEMON_GROWTH_BYTES)
        self._give_memory(reservation, Use.ANSWER)
        if KEPT in self._reservations.workers:
            self._waiting.append(reservation)
        elif not is_adopted:
            self._workers.start(reservation, config)

    def _start_run(self, reservation: Reservation) -> None:
        self._give_memory(reservation, Use.TRAINING)
        try:
            self._workers.start(reservation, self._config(reservation))
        except MeshError as error:
            self._push(reservation, "ended", message=error.message, hint=error.hint)
            self._node.rpc.loop.soon(lambda: self.worker_ended(reservation))

    def worker_said(self, reservation: Reservation, line: Mapping[str, Any]) -> None:
        """See `WorkerEvents`."""
        if "port" in line:
            reservation.relay, reservation.transport = str(line.get("relay", "")), ""
            self._push(reservation, "listens", port=line["port"])
        if type(line.get("memory")) is int:
            reservation.planned_bytes = line["memory"]
        reservation.transport = str(line.get("transport", reservation.transport))
        if isinstance(line.get("failed"), dict):
            # At once: a process that reads from a disk which does not answer cannot end.
            self._push(reservation, "ended", **WorkerProcess.why_failed(line["failed"]))

    def worker_left(self, reservation: Reservation, worker: WorkerProcess) -> None:
        """See `WorkerEvents`. A run whose worker has left is over: it is not started again."""
        is_run = isinstance(reservation.user, str)
        if is_run and self._users.get(reservation.user) is not reservation:
            return  # it was called off before
        self._push(reservation, "ended", **worker.why_ended())
        if is_run:
            self._end_run(reservation)

    def worker_ended(self, reservation: Reservation) -> None:
        """See `WorkerEvents`."""
        user = reservation.user
        if self._reservations.workers.count(user) <= 1:
            self.memory.release(user)
        self._do(self._reservations.worker_ended(user))
        if isinstance(user, str) and user not in self._reservations.runs:
            self._users.pop(user, None)

    def worker_kept(self, reservation: Reservation, kept: KeptWorker) -> None:
        """See `WorkerEvents`."""
        why = kept.worker.failure
        said = WorkerProcess.why_failed(why) if why else {"message": "the session is over"}
        self._push(reservation, "ended", **said)
        self.memory.keep(reservation, kept.nbytes)
        self._do(self._reservations.let_runs_wait(True))
        if any(self._is_own(self._users[user]) for user in self._reservations.queue):
            self._end_kept()  # before the hub's process is granted the memory
        self._do(self._reservations.worker_ended(reservation.user))

    def _give_memory(self, reservation: Reservation, use: Use) -> None:
        if not self.memory.give_all(reservation, use):
            return
        wanted = reservation.wanted if self._is_own(reservation) else None
        if self._hub_slice.lend(wanted):
            self._do(self._reservations.let_runs_wait(False))
        else:
            self._end_kept()

    def _end_kept(self) -> None:
        """End the kept slice, if there is one; `kept_ended` is called when its memory is free."""
        if self._hub_slice.end():
            self.kept_ended()
        if self._workers.kept is not None:
            self._do(self._reservations.worker_started(KEPT))
            self._workers.end_kept()

    def kept_ended(self) -> None:
        """See `WorkerEvents`."""
        self.memory.release(KEPT)
        waiting, self._waiting = self._waiting, []
        for reservation in waiting:
            self._start_late(reservation)
        self._do(self._reservations.let_runs_wait(False))
        self._do(self._reservations.worker_ended(KEPT))
        self.memory_requests.kept_ended()

    def _start_late(self, reservation: Reservation) -> None:
        """Start a worker that had to wait for memory, unless its hub has gone meanwhile."""
        try:
            if self._users.get(reservation.user) is reservation:
                return self._workers.start(reservation, self._config(reservation))
        except MeshError as error:
            self._push(reservation, "ended", **WorkerProcess.why_failed(vars(error)))
        self._node.rpc.loop.soon(lambda: self.worker_ended(reservation))

    def _endpoint(self, key: str = "") -> str:
        """The socket of the worker that runs, for a group with that board in it; "" if none."""
        holder = self._holder
        if holder is None or holder.worker is None or holder.spec is None:
            return ""
        return holder.relay if not key or key in dict(holder.spec.members) else ""

    # -- reports -------------------------------------------------------------------------------

    def _push(self, reservation: Reservation, what: str, **body: Any) -> None:
        self._node.rpc.push(reservation.sender, f"job-{what}", reservation.about(body))

    def _push_newest(self, reservation: Reservation, what: str, **body: Any) -> None:
        self._node.rpc.push_newest(reservation.sender, f"job-{what}", reservation.about(body))

    def _push_report(self) -> None:
        self._node.rpc.loop.after(REPORT_S, self._push_report)
        if self.memory.must_free(self._options.keep_s):
            self._end_kept()
        holder = self._holder
        if holder is not None and holder.worker is not None:
            self._push_newest(holder, "report", **holder.worker.report())

    def report(self) -> Body:
        """This board in a few words, for its heartbeats."""
        kept_bytes = self._workers.kept_rss_bytes + self._hub_slice.nbytes
        relayed = bool(self._relays)
        return self._reports.of(
            self._holder, self.memory, self._reservations, kept_bytes, relayed=relayed
        )

    def close(self) -> None:
        """End all workers."""
        self._relays.close()
        self._handover.close()
        for reservation in self._users.values():
            self._workers.stop(reservation)
        self._users.clear()
        self._reservations = Reservations()
        self._hub_slice.close()
        self._workers.close()


def _sender(peer: str) -> Sender:
    if not isinstance(peer, Sender):
        raise ProtocolError("a session is asked for over a connection of its own")
    return peer
