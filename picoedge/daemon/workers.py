"""The worker processes of a board, watched by the daemon's event loop.

A worker is stopped without waiting: in a disk read it ends only when the disk answers. It counts
until its memory is free. One whose group is over may keep its slice; at most one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from picoedge.daemon.worker_process import WorkerProcess
from picoedge.errors import MeshError
from picoedge.host.processes import set_goes_first
from picoedge.host.resources import lasting_bytes, rss_bytes_of
from picoedge.jobs.kept_memory import PLANNING_S

# From a group's end until its worker must have let go of it: a lost link is noticed within a
# second, and a kernel call on a slow board takes another.
LET_GO_S = 5.0
_LOADED = ("waiting for work", "computing", "kept")  # stages of a worker whose slice is loaded

if TYPE_CHECKING:
    from picoedge.daemon.job_kinds import JobSpec
    from picoedge.daemon.reservations import User
    from picoedge.jobs.spec import SliceKey, WorkerConfig
    from picoedge.mesh.transport.loop import Loop
    from picoedge.mesh.transport.messages import Body, Pending
    from picoedge.mesh.transport.server import Sender


@dataclass(eq=False)
class Reservation:
    """A user of this board, in the queue or at work: a connection, or a background run.

    `sender` is the hub's connection; the one of a run may have ended. `session` tells sessions of
    one key apart; "" if the hub does not say.
    """

    user: User
    sender: Sender
    granted: Pending
    job: str = ""
    module: str = ""
    spec: JobSpec | None = None
    relay: str = ""  # its worker's Unix socket, for a relay
    transport: str = ""  # of messages between its worker and the hub, once they are linked
    worker: WorkerProcess | None = None
    wanted: SliceKey | None = None  # what this board's own session will load
    session: str = ""
    granted_s: float = float("-inf")  # when it was given the board
    given_bytes: int = 0  # that its worker may take
    planned_bytes: int = 0  # of its worker's process, or its hub's, once its slice is loaded
    hub_pid: int = 0  # of a session of this board, which has said what it plans

    def about(self, body: Body) -> Body:
        """A message about its job."""
        return body if self.spec is None else {"group": self.spec.id, **body}


def untaken_bytes(holder: Reservation | None, now_s: float) -> tuple[int | None, int]:
    """Bytes that a board's session is still to take, None while it does not know itself; and the
    most that it may be.

    A session that has no worker here yet may be about to start one, or to load in its hub; what is
    said until then is left to others.
    """
    if holder is None:
        return 0, 0
    if holder.worker is None:
        if holder.hub_pid:
            left = max(0, holder.planned_bytes - lasting_bytes(holder.hub_pid))
            return left, left
        return (None if now_s - holder.granted_s < PLANNING_S else 0), 0
    report = holder.worker.report()
    if report["stage"] in _LOADED and not holder.planned_bytes:  # mapped: the system's cache
        return 0, 0
    most = max(0, (holder.planned_bytes or holder.given_bytes) - lasting_bytes(holder.worker.pid))
    return (most if holder.planned_bytes else None), most


class WorkerEvents(Protocol):
    """Events of a reservation's worker."""

    def worker_said(self, reservation: Reservation, line: Mapping[str, Any]) -> None:
        """It printed a line."""

    def worker_left(self, reservation: Reservation, worker: WorkerProcess) -> None:
        """It has ended by itself; `worker_ended` follows."""

    def worker_ended(self, reservation: Reservation) -> None:
        """It is gone, and its memory is free."""

    def worker_kept(self, reservation: Reservation, kept: KeptWorker) -> None:
        """Its group is over; it is no longer the reservation's, and keeps its slice."""

    def kept_ended(self) -> None:
        """The worker that kept a slice is gone, and its memory is free."""


@dataclass(frozen=True, eq=False)
class KeptWorker:
    """A worker process without a job that keeps its slice, which takes up to `nbytes`.

    `key`: of jobs that can go on with the slice, those whose own is equal.
    """

    worker: WorkerProcess
    module: str
    key: object
    nbytes: int


class Workers:
    """Starts, reads, and ends workers on `loop`; tells `events` what becomes of them."""

    def __init__(self, loop: Loop, events: WorkerEvents, *, keep: bool = False) -> None:
        self._loop, self._events, self._keep = loop, events, keep
        self.kept: KeptWorker | None = None
        self._running: list[Reservation] = []  # those that have a worker
        self._ending: list[WorkerProcess] = []  # killed, but their memory is not free yet

    @property
    def kept_rss_bytes(self) -> int:
        """Memory of the worker that keeps a slice; 0 if none does."""
        return rss_bytes_of(self.kept.worker.pid) if self.kept else 0

    @property
    def kept_untaken_bytes(self) -> int:
        """Bytes that the worker that keeps a slice takes in the next group, if it is used there."""
        return max(0, self.kept.nbytes - lasting_bytes(self.kept.worker.pid)) if self.kept else 0

    def start(self, reservation: Reservation, config: WorkerConfig) -> None:
        """Start the worker of a reservation. Raises MeshError."""
        config = replace(config, keep=self._keep)
        reservation.planned_bytes, reservation.given_bytes = 0, config.memory_bytes
        try:
            worker = WorkerProcess(reservation.module, config, self._listener(reservation))
        except OSError as error:
            remedy = "has that board memory and files left for another process?"
            raise MeshError(f"its worker did not start: {error}", remedy) from error
        self._watch(reservation, worker)

    def _watch(self, reservation: Reservation, worker: WorkerProcess) -> None:
        reservation.worker = worker
        self._running.append(reservation)
        self._loop.add(worker.stdout.fileno(), lambda: self._read(reservation, worker))
        self._loop.add(worker.pidfd, lambda: self._on_exit(reservation, worker))

    def _listener(self, reservation: Reservation) -> Callable[[Mapping[str, Any]], None]:
        def heard(line: Mapping[str, Any]) -> None:
            worker, nbytes = reservation.worker, line.get("kept")
            if type(nbytes) is int and worker is not None:
                return self._keep_slice(reservation, worker, nbytes)
            self._events.worker_said(reservation, line)

        return heard

    # -- kept slices ---------------------------------------------------------------------------

    def let_go(self, reservation: Reservation) -> None:
        """The group of a reservation is over: its worker may keep its slice, or is stopped."""
        worker = reservation.worker
        may_keep = self._keep and reservation.spec is not None and reservation.spec.slice_key
        if worker is None or not may_keep or worker.report()["stage"] not in _LOADED:
            return self.stop(reservation)

        def check() -> None:
            if reservation.worker is worker:
                self.stop(reservation)

        self._loop.after(LET_GO_S, check)

    def _keep_slice(self, reservation: Reservation, worker: WorkerProcess, nbytes: int) -> None:
        if reservation.spec is None or reservation.spec.slice_key is None or not self._keep:
            return self.stop(reservation)
        assert self.kept is None, "two workers with a slice each"
        self._take_from(reservation)
        set_goes_first(worker.pid, first=True)
        worker.listen(lambda line: None)
        self._loop.add(worker.stdout.fileno(), lambda: self._read_kept(worker))
        self._loop.add(worker.pidfd, self.end_kept)
        self.kept = KeptWorker(worker, reservation.module, reservation.spec.slice_key, nbytes)
        self._events.worker_kept(reservation, self.kept)

    def _read_kept(self, worker: WorkerProcess) -> None:
        if not worker.read():
            self._loop.remove(worker.stdout.fileno())

    def adopt(self, reservation: Reservation, config: WorkerConfig, spare_bytes: int) -> bool:
        """Give the job of a reservation to the worker that keeps its slice; False if none does.

        The slice was loaded for as much memory as there was then, which may have been
        `spare_bytes` more than there is now.
        """
        kept = self.kept
        assert reservation.spec is not None
        if (
            kept is None
            or kept.key != reservation.spec.slice_key
            or kept.module != reservation.module
            or kept.nbytes > config.memory_bytes + spare_bytes
        ):
            return False
        try:
            kept.worker.hand(replace(config, keep=True), self._listener(reservation))
        except OSError:  # it has just been killed
            return False
        self.kept, reservation.planned_bytes = None, kept.nbytes
        set_goes_first(kept.worker.pid, first=False)
        self._watch(reservation, kept.worker)
        return True

    def end_kept(self) -> None:
        """End the worker that keeps a slice, if there is one; `kept_ended` follows."""
        kept, self.kept = self.kept, None
        if kept is not None:
            self._kill(kept.worker, lambda: self._kept_gone(kept.worker))

    def _kept_gone(self, worker: WorkerProcess) -> None:
        worker.end()
        self._events.kept_ended()

    # -- their end -----------------------------------------------------------------------------

    def stop(self, reservation: Reservation) -> None:
        """Kill the worker of a reservation, if it has one."""
        worker = self._take_from(reservation)
        if worker is not None:
            self._kill(worker, lambda: self._stopped(reservation, worker))

    def _take_from(self, reservation: Reservation) -> WorkerProcess | None:
        """The worker of a reservation, which has none from now on."""
        worker, reservation.worker = reservation.worker, None
        reservation.relay = reservation.transport = ""
        if worker is not None:
            self._running.remove(reservation)
        return worker

    def _kill(self, worker: WorkerProcess, then: Callable[[], None]) -> None:
        """Kill a process; `then` is called when it is gone."""

        def reap() -> None:
            self._loop.remove(worker.pidfd)
            self._ending.remove(worker)
            then()

        self._loop.remove(worker.stdout.fileno())
        self._loop.remove(worker.pidfd)
        worker.kill()
        self._ending.append(worker)
        self._loop.add(worker.pidfd, reap)

    def _stopped(self, reservation: Reservation, worker: WorkerProcess) -> None:
        if isinstance(reservation.user, str) and not worker.was_killed:
            self._events.worker_left(reservation, worker)  # when it was to be stopped
        worker.end()
        self._events.worker_ended(reservation)

    def _read(self, reservation: Reservation, worker: WorkerProcess) -> None:
        if reservation.worker is worker and not worker.read():
            self._loop.remove(worker.stdout.fileno())

    def _on_exit(self, reservation: Reservation, worker: WorkerProcess) -> None:
        """The worker has ended by itself: say why before the hub sees a broken link."""
        if reservation.worker is worker:
            self._events.worker_left(reservation, worker)
            self.stop(reservation)

    def close(self) -> None:
        """End all, and reap those that have ended at once."""
        for reservation in list(self._running):
            self.stop(reservation)
        self.end_kept()
        for worker in self._ending:
            worker.end()
