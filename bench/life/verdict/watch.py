"""What processes of boards hold while they live: memory over time, descriptors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.life.boards import LifeBoard

EVERY_S = 10.0
ROLES = {b"picoedge.cluster.worker": "worker", b"run": "daemon", b"chat": "hub"}


@dataclass
class Living:
    """One process: what it is, and its memory in bytes at seconds of its age."""

    board: str
    role: str
    began_s: float
    memory: list[tuple[float, int]] = field(default_factory=list)
    descriptors: int = 0
    is_alive: bool = True

    @property
    def age_s(self) -> float:
        """How old it was when it was last seen."""
        return self.memory[-1][0] if self.memory else 0.0


class Watch:
    """Looks at all processes of some boards again and again, beside a life."""

    def __init__(self, boards: Sequence[LifeBoard]) -> None:
        self._boards = boards
        self.processes: dict[tuple[int, str], Living] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.look()

    def look(self) -> None:
        """Once."""
        now = time.monotonic()
        for one in self.processes.values():
            one.is_alive = False
        for each in self._boards:
            for pid in each.board.pids():
                with suppress(OSError, ValueError):
                    self._see(each.board.name, pid, now)

    def _see(self, board: str, pid: int, now: float) -> None:
        folder = Path(f"/proc/{pid}")
        words = (folder / "cmdline").read_bytes().split(b"\0")
        role = next((role for word, role in ROLES.items() if word in words), "")
        if not role or b"picoedge" not in b" ".join(words):
            return
        began = (folder / "stat").read_text().rpartition(")")[2].split()[19]
        one = self.processes.setdefault((pid, began), Living(board, role, now))
        one.memory.append((now - one.began_s, own_bytes((folder / "status").read_text())))
        one.is_alive = True
        one.descriptors = len(os.listdir(folder / "fd"))

    def stop(self) -> None:
        """No more. Idempotent."""
        self._stop.set()
        self._thread.join()

    def grown(self) -> list[Grown]:
        """Of the processes so far, once it was stopped: a last look."""
        self.look()
        return growths(list(self.processes.values()))


def own_bytes(status: str) -> int:
    """Memory that is a process's own, by /proc/PID/status: pages of files come and go."""
    lines = (line.split() for line in status.splitlines())
    return sum(int(p[1]) << 10 for p in lines if p and p[0] in ("RssAnon:", "RssShmem:"))


SETTLED_S, OLD_S = 600.0, 1200.0
NEAR = 3  # looks whose median is one figure: garbage waits for its collection
LEAST_OLD = 5  # processes of twenty minutes, of all lives together
NEVER_KILLED = ("daemon", "hub")  # one of each in each life


@dataclass(frozen=True)
class Grown:
    """How much a process grew that was old enough; `is_alive`: nothing had ended it at the end."""

    role: str
    board: str
    age_s: float
    n_bytes: int
    is_alive: bool

    def __str__(self) -> str:
        spared = ", never killed" if self.is_alive else ""
        return f"{self.role} of {self.board}, {self.age_s / 60:.0f} min{spared}"


def growth_bytes(memory: Sequence[tuple[float, int]]) -> int | None:
    """From the tenth minute to the last; None for a process that did not live for twenty."""
    if not memory or memory[-1][0] < OLD_S:
        return None
    settled = [n for at, n in memory if at >= SETTLED_S]
    return _median(settled[-NEAR:]) - _median(settled[:NEAR])


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]


def growths(processes: Sequence[Living]) -> list[Grown]:
    """Of each process that was old enough."""
    found: list[Grown] = []
    for one in processes:
        grown = growth_bytes(one.memory)
        if grown is not None:
            found.append(Grown(one.role, one.board, one.age_s, grown, one.is_alive))
    return found


def why_too_few(lives: Mapping[int, Sequence[Grown]]) -> str:
    """Why growth cannot be judged from these lives, by seed; "" where it can."""
    for seed, grown in lives.items():
        lacking = [role for role in NEVER_KILLED if not _is_spared(role, grown)]
        if lacking:
            return (
                f"in the life of seed {seed} no {' and no '.join(lacking)} lived for "
                f"{OLD_S / 60:.0f} minutes to the end"
            )
    count = sum(map(len, lives.values()))
    if count < LEAST_OLD:
        return f"{count} processes of {OLD_S / 60:.0f} minutes, {LEAST_OLD} are needed: more seeds"
    return ""


def _is_spared(role: str, grown: Sequence[Grown]) -> bool:
    return any(one.role == role and one.is_alive for one in grown)
