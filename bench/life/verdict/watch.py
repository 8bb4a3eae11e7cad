"""What processes of boards hold while they live: memory over time, descriptors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
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
        one.descriptors = len(os.listdir(folder / "fd"))

    def stop(self) -> None:
        """No more."""
        self._stop.set()
        self._thread.join()


def own_bytes(status: str) -> int:
    """Memory that is a process's own, by /proc/PID/status: pages of files come and go."""
    lines = (line.split() for line in status.splitlines())
    return sum(int(p[1]) << 10 for p in lines if p and p[0] in ("RssAnon:", "RssShmem:"))


SETTLED_S, OLD_S = 600.0, 1200.0
NEAR = 3  # looks whose median is one figure: garbage waits for its collection


def growth_bytes(memory: Sequence[tuple[float, int]]) -> int | None:
    """From the tenth minute to the last; None for a process that did not live for twenty."""
    if not memory or memory[-1][0] < OLD_S:
        return None
    settled = [n for at, n in memory if at >= SETTLED_S]
    return _median(settled[-NEAR:]) - _median(settled[:NEAR])


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]


def growths(processes: Sequence[Living]) -> list[tuple[str, int]]:
    """(which, bytes) of each process that was old enough."""
    found: list[tuple[str, int]] = []
    for one in processes:
        grown = growth_bytes(one.memory)
        if grown is not None:
            found.append((f"{one.role} of {one.board}, {one.age_s / 60:.0f} min", grown))
    return found
