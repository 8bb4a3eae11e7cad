"""The worker processes of a board, watched by the daemon's event loop.

A worker is stopped without waiting: in a disk read it ends only when the disk answers. It counts
until its memory is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from picoedge.daemon.worker_process import WorkerProcess
from picoedge.errors import MeshError

if TYPE_CHECKING:
    from picoedge.daemon.job_kinds import JobSpec
    from picoedge.daemon.reservations import User
    from picoedge.jobs.spec import WorkerConfig
    from picoedge.mesh.transport.loop import Loop
    from picoedge.mesh.transport.messages import Pending
    from picoedge.mesh.transport.server import Sender


@dataclass(eq=False)
class Reservation:
    """A user of this board, in the queue or at work: a connection, or a background run.

    `sender` is the hub's connection; the one of a run may have ended.
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


class WorkerEvents(Protocol):
    """What becomes of a reservation's worker."""

    def worker_said(self, reservation: Reservation, line: Mapping[str, Any]) -> None:
        """It printed a line."""

    def worker_left(self, reservation: Reservation, worker: WorkerProcess) -> None:
        """It has ended by itself; `worker_ended` follows."""

    def worker_ended(self, reservation: Reservation) -> None:
        """It is gone, and its memory is free."""


class Workers:
    """Starts, reads, and ends workers on `loop`; tells `events` what becomes of them."""

    def __init__(self, loop: Loop, events: WorkerEvents) -> None:
        self._loop, self._events = loop, events
        self._ending: list[WorkerProcess] = []  # killed, but their memory is not free yet

    @property
    def are_ending(self) -> bool:
        """Whether the memory of any that was stopped is not free yet."""
        return bool(self._ending)

    def start(self, reservation: Reservation, config: WorkerConfig) -> None:
        """Start the worker of a reservation. Raises MeshError."""
        try:
            worker = WorkerProcess(
                reservation.module,
                config,
                lambda line: self._events.worker_said(reservation, line),
            )
        except OSError as error:
            remedy = "has that board memory and files left for another process?"
            raise MeshError(f"its worker did not start: {error}", remedy) from error
        reservation.worker = worker
        self._loop.add(worker.stdout.fileno(), lambda: self._read(reservation, worker))
        self._loop.add(worker.pidfd, lambda: self._on_exit(reservation, worker))

    def stop(self, reservation: Reservation) -> None:
        """Kill the worker of a reservation, if it has one."""
        worker, reservation.worker = reservation.worker, None
        reservation.relay = reservation.transport = ""
        if worker is not None:
            self._loop.remove(worker.stdout.fileno())
            self._loop.remove(worker.pidfd)
            worker.kill()
            self._ending.append(worker)
            self._loop.add(worker.pidfd, lambda: self._reap(reservation, worker))

    def _reap(self, reservation: Reservation, worker: WorkerProcess) -> None:
        self._loop.remove(worker.pidfd)
        self._ending.remove(worker)
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
        """Reap those that were stopped, as far as they have ended."""
        for worker in self._ending:
            worker.end()
