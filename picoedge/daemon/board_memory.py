"""A board's memory as its daemon gives it: the budget, and the ledger of its claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.daemon.memory_ledger import Claim, MemoryLedger, Use
from picoedge.host.resources import available_bytes, rss_bytes
from picoedge.jobs.spec import WorkerConfig

if TYPE_CHECKING:
    from picoedge.daemon.reservations import User
    from picoedge.daemon.workers import Reservation
    from picoedge.mesh.node.node import Node

KEPT = b"kept slice"  # its user in the ledger; also of its process, while that is ending
DAEMON_GROWTH_BYTES = 4 << 20  # of the daemon itself, while a job runs
SPARE_PART = 32  # of a board's memory: where less is free, a kept slice is given up


@dataclass(frozen=True)
class BoardOptions:
    """This board's offer: bytes of memory for all of picoedge, its shelf of packs, threads."""

    memory_bytes: int
    shelf: Path
    threads: int | None = None
    keep_s: float = 0.0  # for which the last group's slice stays loaded
    ports: tuple[int, int] | None = None  # the first and the last at which workers listen

    def worker_config(
        self, reservation: Reservation, node: Node, pack: Path | None, memory_bytes: int
    ) -> WorkerConfig:
        """A worker's means for a job; `pack`: the folder of its model, if it is here."""
        assert reservation.spec is not None
        return WorkerConfig(
            job=reservation.job,
            spec=reservation.spec.to_json(),
            pack=pack,
            shelf=self.shelf,
            host=node.address.host,
            ports=self.ports,
            page=Path(),
            memory_bytes=memory_bytes,
            threads=self.threads,
            daemons=node.peers.reached(key for key, _ in reservation.spec.members),
        )


class BoardMemory:
    """`limit`: bytes for all of picoedge on this board; `name_of` a board, by its key."""

    def __init__(
        self, limit: int, clock: Callable[[], float], name_of: Callable[[str], str]
    ) -> None:
        self.limit, self._clock, self._name_of = limit, clock, name_of
        self._ledger = MemoryLedger()

    @property
    def job_bytes(self) -> int:
        """Bytes that a job may take."""
        return max(0, self.limit - rss_bytes() - DAEMON_GROWTH_BYTES)

    def give_all(self, reservation: Reservation, use: Use) -> bool:
        """Give a job all there is; returns whether the kept slice must end for it."""
        nbytes = self.job_bytes
        ended = self._ledger.claim(self._of(reservation, reservation.user, use, nbytes), nbytes)
        assert ended is not None, "a job of the board beside another"
        return any(claim.user == KEPT for claim in ended)

    def keep(self, reservation: Reservation, nbytes: int, model: str = "") -> None:
        """Turn a job's claim into one of its kept slice."""
        self._ledger.turn(reservation.user, self._of(reservation, KEPT, Use.KEPT, nbytes, model))

    def release(self, user: User) -> None:
        """End that user's claim."""
        self._ledger.release(user)

    def _of(
        self, reservation: Reservation, user: User, use: Use, nbytes: int, model: str = ""
    ) -> Claim:
        spec, sender = reservation.spec, str(reservation.sender)
        model = str(spec.describe().get("model", "")) if spec else model
        return Claim(user, use, nbytes, self._clock(), self._name_of(sender), model)

    def must_free(self, keep_s: float) -> bool:
        """Whether a slice has been kept for so long, or the system is short of memory."""
        kept = self._ledger.of(KEPT)
        if kept is None:
            return False
        is_old = self._clock() - kept.since_s >= keep_s
        return is_old or available_bytes() < self.limit // SPARE_PART

    @property
    def kept_bytes(self) -> int:
        """The kept slice, while no session has it."""
        kept = self._ledger.of(KEPT)
        return kept.nbytes if kept else 0

    def report(self) -> list[dict[str, Any]]:
        """The claims, for `picoedge ps`."""
        return [claim.to_json(self._clock()) for claim in self._ledger.claims]
