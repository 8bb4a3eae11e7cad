"""A board's memory as its daemon gives it: the budget, and the ledger of its claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.daemon.memory.ledger import Claim, MemoryLedger, Use
from picoedge.host.resources import available_bytes, own_bytes, picoedge_pids, rss_bytes
from picoedge.host.sysfs import PROC, file_text
from picoedge.jobs.kept_memory import STARTING_BYTES
from picoedge.jobs.spec import WorkerConfig
from picoedge.mesh.cluster_folder import cluster_folder

if TYPE_CHECKING:
    from picoedge.daemon.reservations import User
    from picoedge.daemon.workers import Reservation
    from picoedge.mesh.node.node import Node

KEPT = b"kept slice"  # its user in the ledger; also of its process, while that is ending
PROBE = b"probe"  # its user in the ledger: the process that measures this board
DAEMON_GROWTH_BYTES = 4 << 20  # of the daemon itself, while a job runs
_ALONE = {"chat", "generate"}
THIS_BOARD = "this board alone"
ALONE_LOOK_S = 10.0  # between looks for the report alone: each reads all of /proc
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


@dataclass(frozen=True)
class Alone:
    """A user in the ledger: a chat or an answer on this board alone, by its process."""

    pid: int


def alone_bytes(folder: Path, said: Mapping[int, int], proc: Path = PROC) -> dict[int, int]:
    """Bytes of each chat and answer on this board alone that uses the cluster's `folder`.

    They are found, not asked: one may be older than its daemon. One counts at least with what it
    said that it takes, by its process in `said`. One over boards is lent its memory with the
    reservation.
    """
    pids = (pid for pid in picoedge_pids(proc) if _is_alone(pid, folder, proc))
    return {pid: max(own_bytes(pid, proc), said.get(pid, STARTING_BYTES)) for pid in pids}


def _is_alone(pid: int, folder: Path, proc: Path) -> bool:
    words = file_text(proc / str(pid) / "cmdline").split("\0")
    if "--cluster" in words or _command(words) not in _ALONE:
        return False
    pairs = (each.partition("=") for each in file_text(proc / str(pid) / "environ").split("\0"))
    return cluster_folder({name: value for name, _, value in pairs}) == folder


def _command(words: list[str]) -> str:
    """The command of `python -m picoedge --debug chat`, and of the program's other forms."""
    names = [word.rpartition("/")[2] for word in words]
    after = words[names.index("picoedge") + 1 :] if "picoedge" in names else []
    return next((word for word in after if not word.startswith("-")), "")


def _runs(pid: int) -> bool:
    return (PROC / str(pid)).exists()


class BoardMemory:
    """`limit`: bytes for all of picoedge on this board; `name_of` a board, by its key.

    `folder` is the cluster's: its other programs, which ask no daemon, leave less.
    """

    def __init__(
        self,
        limit: int,
        clock: Callable[[], float],
        name_of: Callable[[str], str],
        folder: Path,
    ) -> None:
        self.limit, self._clock, self._name_of, self._folder = limit, clock, name_of, folder
        self._ledger = MemoryLedger()
        self._said: dict[int, int] = {}  # what programs on this board alone take, by process
        self._looked_s = -ALONE_LOOK_S
        self._end_probe: Callable[[], None] = lambda: None

    def hold(self, pid: int, nbytes: int) -> None:
        """A program on this board alone is about to take so much, until it ends."""
        self._said = {each: said for each, said in self._said.items() if _runs(each)}
        self._said[pid] = nbytes

    def untaken_bytes(self, but: int) -> int:
        """Bytes that programs on this board alone are still to take, without the process `but`."""
        others = (each for each in self._said.items() if each[0] != but)
        return sum(max(0, said - own_bytes(pid, PROC)) for pid, said in others if _runs(pid))

    @property
    def now_s(self) -> float:
        """The time by its clock."""
        return self._clock()

    @property
    def job_bytes(self) -> int:
        """Bytes that a job may take."""
        alone = self._enter_alone()
        return max(0, self.limit - rss_bytes() - DAEMON_GROWTH_BYTES - alone)

    def _enter_alone(self) -> int:
        """Enter a claim for each program on this board alone; returns their bytes."""
        found = alone_bytes(self._folder, self._said)
        since = {each.user: each.since_s for each in self._ledger.claims}
        now = self._looked_s = self._clock()
        self._ledger.replace(
            Alone,
            (
                Claim(user, Use.ANSWER, nbytes, since.get(user, now), THIS_BOARD)
                for user, nbytes in ((Alone(pid), nbytes) for pid, nbytes in found.items())
            ),
        )
        return sum(found.values())

    def give_all(self, reservation: Reservation, use: Use) -> bool:
        """Give a job all there is; returns whether the kept slice must end for it."""
        nbytes, alone = self.job_bytes, self._ledger.nbytes_of(Alone)
        claim = self._of(reservation, reservation.user, use, nbytes)
        ended = self._ledger.claim(claim, nbytes + alone)
        assert ended is not None, "a job of the board beside another"
        if any(claim.user == PROBE for claim in ended):
            self._end_probe()
        return any(claim.user == KEPT for claim in ended)

    def give_probe(self, most: int, end: Callable[[], None]) -> int:
        """Give the process that measures this board what is free, at most so many bytes.

        `end` is called when anything else wants them. `release` takes them back.
        """
        self._enter_alone()
        budget, self._end_probe = max(0, self.limit - rss_bytes() - DAEMON_GROWTH_BYTES), end
        nbytes = min(most, self._ledger.room(Use.MEASURING, budget), available_bytes())
        claim = Claim(PROBE, Use.MEASURING, nbytes, self._clock(), THIS_BOARD)
        self._ledger.claim(claim, budget)
        return nbytes

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
        if self._clock() - self._looked_s >= ALONE_LOOK_S:
            self._enter_alone()
        return [claim.to_json(self._clock()) for claim in self._ledger.claims]
