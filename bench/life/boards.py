"""Boards of a life: a daemon on each, by the command line of its unit, started again by it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.children import BenchError, clean_environment
from bench.life.faults.preload import Faults
from bench.life.faults.reach import Reach
from bench.mesh_cluster import lab_of
from bench.recovery_answers import worker_of
from hw.lab import Board, BoardLimits, Lab, LinkShape

PICOEDGE = [sys.executable, "-m", "picoedge"]
# One board streams SmolLM2 at two seconds a token, two at a fifth of one, three hold all of it.
MEMORY_BYTES, OF_PACK_BYTES = 176 << 20, 93 << 20
DISK_BYTES_PER_S = 40 << 20
LINK = LinkShape(delay_s=100e-6)
FORM_S, STOP_S, UNIT_RESTART_S, LOOK_S = 180.0, 15.0, 1.0, 0.1
FIRST_MOVED, LAST_MOVED = 100, 250  # addresses that boards move to
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class LifeBoard:
    """A board of a life, its daemon and its logs."""

    def __init__(self, board: Board, library: Path) -> None:
        self.board = board
        self.daemon: subprocess.Popen[Any] | None = None
        self._starting = threading.Lock()
        self.is_off = False  # between the two halves of a reboot
        self.faults = Faults(library, board.folder / "faults")
        self.preloaded = self.faults.environment()

    def environment(self) -> dict[str, str]:
        """Homes of its own."""
        folder = self.board.folder
        return {
            **clean_environment(os.environ, folder / "home"),
            **self.preloaded,
            "PICOEDGE_CLUSTER": str(folder / "cluster"),
            "PICOEDGE_HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
        }

    @property
    def log(self) -> Path:
        """What its daemons have said, all of them."""
        return self.board.folder.with_suffix(".log")

    def start(self, *extra: str) -> None:
        """Start its daemon."""
        with open(self.log, "ab") as log:
            self.daemon = self.board.start(
                [*PICOEDGE, "run", *extra], env=self.environment(), stdout=log, stderr=log
            )

    def type(self, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A command, to its end."""
        return self.board.run([*PICOEDGE, *words], env=self.environment(), timeout_s=timeout_s)

    def terminate(self) -> int | None:
        """`systemctl stop`: its exit code, None where it had to be killed."""
        daemon, self.daemon = self.daemon, None
        if daemon is None:
            return 0
        daemon.send_signal(signal.SIGCONT)
        daemon.terminate()
        try:
            return int(daemon.wait(STOP_S))
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
            return None

    def revive(self) -> bool:
        """What the unit does about a daemon that has ended by itself; whether it had."""
        ended = self.daemon
        if self.is_off or ended is None or ended.poll() is None:
            return False
        time.sleep(UNIT_RESTART_S)
        with self._starting:
            if self.is_off or self.daemon is not ended:
                return False
            self.start()
        return True

    def limit_reading(self, bytes_per_s: int | None = DISK_BYTES_PER_S) -> None:
        """Make its card slow, or as it was."""
        self.board.limit(disk_bytes_per_s=bytes_per_s)

    def descriptors(self) -> int:
        """How many its daemon has open."""
        pid = 0 if self.daemon is None else self.daemon.pid
        return len(os.listdir(f"/proc/{pid}/fd")) if pid else 0

    def worker(self) -> int | None:
        """The process of its part in a session."""
        return worker_of(self.board)

    def worker_cpu_s(self) -> tuple[int, float]:
        """(its worker's process, seconds it has computed); (0, 0.0) without one."""
        pid = self.worker()
        with suppress(OSError, TypeError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return int(pid or 0), (int(fields[11]) + int(fields[12])) * TICK_S
        return 0, 0.0


class LifeBoards:
    """All of them, the chat's first."""

    def __init__(self, lab: Lab, pack: Path, library: Path) -> None:
        self.all = [LifeBoard(board, library) for board in lab.boards]
        self._lab, self._pack, self._moves = lab, pack, 0
        self.reach = Reach(len(self.all))

    def __getitem__(self, index: int) -> LifeBoard:
        return self.all[index]

    def form(self) -> None:
        """Let them in and start them, as README says. Raises BenchError."""
        first, second, *_ = self.all
        for each in (first, second):  # the others pull what they need
            (each.board.folder / "models").mkdir()
            each.board.copy(self._pack, f"models/{self._pack.name}")
        _typed(first, "keys", "init", "--name", "desk", "--board", first.board.name)
        first.start()
        deadline = time.monotonic() + FORM_S
        for other in self.all[1:]:
            self._await(deadline, first, lambda: "daemon.json" in _names(first))
            invite = _typed(first, "keys", "invite", "--address", first.board.address)
            other.start("--join", invite.splitlines()[0], "--name", other.board.name)
            self._await(deadline, other, lambda at=other: "daemon.json" in _names(at))
        self.await_all(deadline)

    def await_all(self, deadline: float, count: int = 0) -> None:
        """The first sees so many, or all. Raises BenchError."""
        self._await(deadline, self.all[0], lambda: self.alive() >= (count or len(self.all)))

    def alive(self) -> int:
        """How many the first board sees."""
        return self.all[0].type("ps").stdout.count(" alive ")

    def _await(self, deadline: float, at: LifeBoard, look: Any) -> None:
        while not look():
            if time.monotonic() > deadline:
                raise BenchError(f"{at.board.name} is not in the cluster: {self.logs()}")
            time.sleep(LOOK_S)

    def part(self, one: int, other: int) -> None:
        """Cut the link of two boards."""
        self.reach.part(one, other)
        self._lab.link(one, other).cut()

    def join(self, one: int, other: int) -> None:
        """Heal it."""
        self._lab.link(one, other).heal()
        self.reach.join(one, other)

    def cut(self, index: int) -> None:
        """Pull a board's cable."""
        self.reach.cut(index)
        self.all[index].board.cut()

    def heal(self, index: int) -> None:
        """Put it back."""
        self.all[index].board.heal()
        self.reach.heal(index)

    def turn_off(self, index: int) -> None:
        """End all that runs on a board, and start nothing."""
        self.reach.turn_off(index)
        self.all[index].is_off = True
        self.all[index].board.kill()

    def turn_on(self, index: int) -> None:
        """Boot it: its unit starts."""
        self.all[index].is_off = False
        self.all[index].start()
        self.reach.turn_on(index)

    def move(self, index: int) -> None:
        """Give a board another address, in place of the one it has."""
        self._moves += 1
        board = self.all[index].board
        net = board.address.rpartition(".")[0]
        new = f"{net}.{FIRST_MOVED + self._moves % (LAST_MOVED - FIRST_MOVED)}"
        board.namespace.ip(
            [
                "addr flush dev eth0",
                f"addr add {new}/24 brd + dev eth0",
                "route add default dev eth0",
            ]
        )

    @contextmanager
    def units(self) -> Iterator[None]:
        """As long as this lasts, daemons that end by themselves are started again."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(LOOK_S):
                for each in self.all:
                    each.revive()

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()

    def computed(self) -> list[tuple[int, float]]:
        """Each board's worker and what it has computed."""
        return [each.worker_cpu_s() for each in self.all]

    def logs(self) -> str:
        """The end of what every daemon said."""
        return "\n".join(
            f"{each.board.name}: {each.log.read_text(errors='replace')[-400:]}"
            for each in self.all
            if each.log.exists()
        )

    def stop(self) -> list[int | None]:
        """End the daemons; their exit codes."""
        return [each.terminate() for each in self.all]


def _names(each: LifeBoard) -> list[str]:
    folder = each.board.folder / "cluster"
    return os.listdir(folder) if folder.is_dir() else []


def _typed(each: LifeBoard, *words: str) -> str:
    done = each.type(*words)
    if done.returncode:
        raise BenchError(f"{each.board.name}: {' '.join(words[:2])}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def life_boards(
    pack: Path, folder: Path, boards: int, library: Path, labs: list[Lab]
) -> Iterator[LifeBoards]:
    """A cluster in a lab of its own, which is added to `labs`; `library`: of `preload.Faults`."""
    size = sum(path.stat().st_size for path in pack.iterdir())
    memory = MEMORY_BYTES + (size - OF_PACK_BYTES)
    limits = BoardLimits(memory_bytes=memory, disk_bytes_per_s=DISK_BYTES_PER_S)
    with lab_of(boards, LINK, limits, folder) as lab:
        labs.append(lab)
        made = LifeBoards(lab, pack, library)
        try:
            made.form()
            yield made
        finally:
            made.stop()
