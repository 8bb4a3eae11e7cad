"""A cluster in the lab: emulated boards with a daemon each, and sessions from the first of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.children import BenchError, Unready, clean_environment
from hw.lab import Board, BoardLimits, Lab, LabError, LinkShape
from picoedge.mesh.identity.admission import found_cluster
from picoedge.mesh.identity.identity import KeyPair, create_identity, load_signing_key
from picoedge.mesh.identity.roster import RosterFile

MIB = 1 << 20
N_CTX = 512
READY_S, ANSWER_S, STOP_S = 120.0, 900.0, 20.0


@dataclass(frozen=True)
class Kind:
    """What the boards of one cluster are. `pinned`: board i computes on core i alone."""

    boards: int
    budgets: tuple[int, ...]  # bytes of memory that each daemon is given, or one for all
    link: LinkShape | None = None
    limits: BoardLimits = field(default_factory=BoardLimits)
    pinned: bool = False
    n_ctx: int = N_CTX
    guests: int = 0  # keys that are let in besides, on no board
    whole: bool = True  # every board has the whole pack; else only the first
    keep: str = "0"  # how long a session's slices stay loaded

    def budget(self, index: int) -> int:
        """Of one board."""
        return self.budgets[min(index, len(self.budgets) - 1)]


class Cluster:
    """Boards of a lab, by rank as they are told apart here: the first is the hub of sessions."""

    def __init__(self, lab: Lab, kind: Kind, pack: Path) -> None:
        self.lab, self.kind, self.boards = lab, kind, lab.boards[: kind.boards]
        self._pack = pack
        self.guests: list[KeyPair] = []
        self.daemons: list[subprocess.Popen[Any]] = []

    @property
    def hub(self) -> Board:
        """Where sessions are started."""
        return self.boards[0]

    def pack_on(self, board: Board) -> Path:
        """Its copy of the model."""
        return board.folder / "models" / self._pack.name

    def environment(self, board: Board) -> dict[str, str]:
        """Its own homes, and nothing of this user's."""
        clean = clean_environment(os.environ, board.folder / "home")
        return {**clean, "PICOEDGE_CLUSTER": str(board.folder / "cluster")}

    def command(self, board: Board, *words: str) -> list[str]:
        """A command of Python's on the board, on its core."""
        return self.on_core(board, [sys.executable, "-m", *words])

    def on_core(self, board: Board, words: Sequence[str]) -> list[str]:
        """Any command, on the board's core."""
        pin = ["taskset", "-c", str(self._core(board))] if self.kind.pinned else []
        return [*pin, *words]

    def _core(self, board: Board) -> int:
        cores = sorted(os.sched_getaffinity(0))
        return cores[self.lab.boards.index(board) % self.kind.boards % len(cores)]

    # -- before ------------------------------------------------------------------------------------

    def copy(self, board: Board) -> None:
        """Give a board the whole pack."""
        (board.folder / "models").mkdir(exist_ok=True)
        board.copy(self._pack, f"models/{self._pack.name}")

    def enrol(self) -> None:
        """Keys for all: they know each other before they start."""
        first = found_cluster(self.hub.folder / "cluster", "bench", self.hub.name)
        signing, roster = load_signing_key(first.folder), RosterFile(first.folder)
        self.guests = [KeyPair.new() for _ in range(self.kind.guests)]
        for i, guest in enumerate(self.guests):
            roster.update(lambda r, n=f"guest{i}", g=guest: r.with_allow(signing, g.public, n))  # type: ignore[misc]
        keys = {board.name: KeyPair.new() for board in self.boards[1:]}
        for name, pair in keys.items():
            roster.update(lambda r, n=name, p=pair: r.with_allow(signing, p.public, n))  # type: ignore[misc]
        for board in self.boards[1:]:
            create_identity(
                board.folder / "cluster", board.name, roster.roster.to_json(), keys[board.name]
            )

    def start(self, index: int) -> None:
        """Start a board's daemon."""
        board = self.boards[index]
        (board.folder / "models").mkdir(exist_ok=True)
        with open(board.folder / "daemon.log", "ab") as log:
            process = board.start(
                self.command(
                    board, "picoedge", "run", "--listen", board.address,
                    "--peers", self.hub.address, "--memory", str(self.kind.budget(index)),
                    "--models", str(board.folder / "models"), "-t", "1",
                    "--keep", self.kind.keep,
                ),
                env=self.environment(board), stdout=log, stderr=log,
            )  # fmt: skip
        self.daemons[index : index + 1] = [process]

    def await_all(self) -> dict[str, Any]:
        """What the boards and links can do, once the hub sees all of them. Raises BenchError."""
        words = ("bench.mesh_look", str(len(self.boards)), str(READY_S))
        done = self.hub.run(
            self.command(self.hub, *words), env=self.environment(self.hub), timeout_s=2 * READY_S
        )
        found: dict[str, Any] = _last_json(done, self.logs)
        return found

    def logs(self) -> str:
        """The end of what every daemon said."""
        found = []
        for board in self.boards:
            path = board.folder / "daemon.log"
            if path.exists():
                found.append(f"{board.name}: {path.read_text(errors='replace')[-300:]}")
        return "\n".join(found)

    # -- sessions ----------------------------------------------------------------------------------

    def session(self, board: Board, prompt: str, n: int, *extra: str) -> list[str]:
        """The command of one greedy answer."""
        return self.command(
            board, "picoedge", "generate", str(self.pack_on(board)), "--raw", "-p", prompt,
            "-n", str(n), "--ignore-eos", "--temperature", "0", "-c", str(self.kind.n_ctx),
            "-t", "1", "--json", *extra,
        )  # fmt: skip

    def generate(self, prompt: str, n: int, *extra: str, boards: int | None = None) -> Any:
        """The report of an answer over the mesh. Raises BenchError."""
        wanted = boards or len(self.boards)
        report = self.alone(self.hub, prompt, n, "--cluster", "--boards", str(wanted), *extra)
        if report["boards"] != wanted:
            raise BenchError(f"over {report['boards']} boards, not {wanted}")
        return report

    def alone(self, board: Board, prompt: str, n: int, *extra: str) -> Any:
        """The report of an answer of one board's `picoedge generate`. Raises BenchError."""
        try:
            done = board.run(
                self.session(board, prompt, n, *extra),
                env=self.environment(board), timeout_s=ANSWER_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"an answer took more than {ANSWER_S:.0f} s\n{self.logs()}") from error
        report = _last_json(done, self.logs)
        if len(report["tokens"]) != n:
            raise BenchError(f"{len(report['tokens'])} tokens, not {n}")
        return report

    def peaks(self) -> dict[str, float]:
        """Peak memory of each board ÷ its budget, until now."""
        return {
            board.name: board.peak_bytes() / self.kind.budget(index)
            for index, board in enumerate(self.boards)
        }

    def stop(self) -> None:
        """End the daemons, as a person would."""
        for process in self.daemons:
            process.terminate()
        for process in self.daemons:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _last_json(done: subprocess.CompletedProcess[str], logs: Callable[[], str]) -> Any:
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip()[-600:]
        raise BenchError(f"ended with {done.returncode}: {said}\n{logs()}")
    return json.loads(lines[-1])


@contextmanager
def lab_of(boards: int, link: LinkShape | None, limits: BoardLimits, folder: Path) -> Iterator[Lab]:
    """A lab whose boards keep their files beside the models. Raises Unready."""
    try:
        lab = Lab(boards, link, limits, folder=folder)
        lab.__enter__()
    except LabError as error:
        raise Unready(str(error)) from error
    try:
        yield lab
    finally:
        lab.close()


@contextmanager
def cluster(kind: Kind, pack: Path, folder: Path, beside: int = 0) -> Iterator[Cluster]:
    """Boards with running daemons that know each other; `beside`: boards without, with the pack.

    Each may use twice its budget: what it takes is measured, not made to fit.
    """
    with lab_of(kind.boards + beside, kind.link, kind.limits, folder) as lab:
        made = Cluster(lab, kind, pack)
        for index, board in enumerate(lab.boards):
            if index < kind.boards and kind.limits.memory_bytes is None:
                board.limit(memory_bytes=2 * kind.budget(index))
            if kind.whole or index in (0, *range(kind.boards, kind.boards + beside)):
                made.copy(board)
        made.enrol()
        try:
            for index in range(kind.boards):
                made.start(index)
            made.await_all()
            yield made
        finally:
            made.stop()
