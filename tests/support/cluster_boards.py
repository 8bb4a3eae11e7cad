"""Boards of a real cluster: a daemon each, started by its command; sessions over them.

Boards are on loop-back, or each on a board of a lab. All have their own keys, shelf and folders.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import zmq

from hw.lab import Board as LabBoard
from picoedge.errors import MeshError
from picoedge.jobs.boards import BoardDirectory
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.identity.admission import Invites, found_cluster
from picoedge.mesh.identity.identity import load_identity
from picoedge.mesh.identity.lifetime import Moment
from picoedge.mesh.identity.roster import RosterFile
from picoedge.mesh.transport.client import Client
from picoedge.planner.topology import LinkFacts, Topology

PICOEDGE = [sys.executable, "-m", "picoedge"]
START_S = 30.0  # of several interpreters at once, on a busy machine
LOOK_S = 0.02
ROOT = Path(__file__).parents[2]

T = TypeVar("T")


def until(look: Callable[[], T], what: str, timeout_s: float = START_S) -> T:
    """The first true value that `look` gives."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(LOOK_S)
    return found


class Output:
    """What a process writes to a pipe, kept and waited for."""

    def __init__(self, pipe: Any) -> None:
        self._pipe, self._changed = pipe, threading.Condition()
        self.text, self._ended = "", False
        self.beside: Callable[[], str] = str  # to be shown with an error
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._pipe:
            while data := os.read(self._pipe.fileno(), 4096):
                with self._changed:
                    self.text += data.decode(errors="replace")
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, pattern: str, timeout_s: float = START_S) -> re.Match[str]:
        """The first match, as soon as it is there."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._found(pattern), timeout_s)
            found = self._found(pattern)
            assert found, f"no {pattern!r} in {timeout_s:g} s:\n{self.text}{self.beside()}"
            return found

    def _found(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.text, re.MULTILINE)

    def end(self) -> str:
        """All of it, once the process has ended."""
        self._thread.join(10)
        assert not self._thread.is_alive(), "a process that has ended left another with its pipe"
        return self.text


class Running:
    """A command of a board, with its output."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self.process = process
        self.out, self.err = Output(process.stdout), Output(process.stderr)
        self.out.beside = lambda: f"\non stderr:\n{self.err.text}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, timeout_s: float = 60.0) -> int:
        """Its exit code."""
        code = self.process.wait(timeout_s)
        self.out.end()
        self.err.end()
        return code

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """Idempotent."""
        self.process.kill()
        self.process.wait()


class BoardOf:
    """A board of a cluster: `start` its daemon, `run` commands there."""

    def __init__(self, name: str, folder: Path, lab: LabBoard | None = None) -> None:
        self.name, self.lab = name, lab
        self.keys, self.shelf = folder / "keys", folder / "shelf"
        self.shelf.mkdir(parents=True)
        self._folder = folder
        self.daemon: Running | None = None
        self.address = ""
        self.code: Path | str = ROOT  # PYTHONPATH of the picoedge that runs there
        self._ran: list[Running] = []
        self.keep = "0"  # a worker ends with its session, unless a test has it kept

    def environ(self) -> dict[str, str]:
        """Nothing of the user's own."""
        kept = {name: value for name, value in os.environ.items() if "PICOEDGE" not in name}
        return {
            **kept,
            "PYTHONPATH": str(self.code),
            "PICOEDGE_CLUSTER": str(self.keys),
            "PICOEDGE_KEEP": self.keep,
            "XDG_CONFIG_HOME": str(self._folder / "config"),
            "XDG_DATA_HOME": str(self._folder / "data"),
            "XDG_CACHE_HOME": str(self._folder.parent / "cache"),  # speeds are measured once
        }

    def lend_environ(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """This process is a session of the board until the test ends."""
        for name, value in self.environ().items():
            if name.startswith(("PICOEDGE", "XDG")):
                monkeypatch.setenv(name, value)

    def start(self, *arguments: str) -> Running:
        """Its daemon, which listens when this returns."""
        at = self.address or f"{self.lab.address if self.lab else '127.0.0.1'}:0"
        common = ["--listen", at, "--models", str(self.shelf), "-t", "1"]
        self.daemon = self.run("run", *common, *arguments)
        self.address = until(self._told_address, f"{self.name} listens")
        return self.daemon

    def _told_address(self) -> str:
        assert self.daemon is not None
        code = self.daemon.process.poll()
        assert code is None, f"{self.name} ended with {code}: {self.daemon.err.end()}"
        try:
            told = json.loads((self.keys / "daemon.json").read_text())
        except (OSError, ValueError):
            return ""
        return str(told["address"]) if told["pid"] == self.daemon.pid else ""

    def run(
        self, *arguments: str | Path, program: Sequence[str] = PICOEDGE, **environ: object
    ) -> Running:
        """A command of picoedge on this board, with more in its environment."""
        given = {**self.environ(), **{name: str(value) for name, value in environ.items()}}
        words = [*program, *map(str, arguments)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if self.lab is not None:
            process = self.lab.start(words, env=given, cwd=self._folder, **pipes)
        else:
            process = subprocess.Popen(
                words,
                env=given,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                **pipes,
            )
        self._ran.append(Running(process))
        return self._ran[-1]

    def workers(self) -> list[psutil.Process]:
        """Worker processes of its daemon, alive."""
        assert self.daemon is not None
        return workers_of(self.daemon.pid)

    def worker(self) -> psutil.Process:
        """Its worker, once there is one."""
        return until(self.workers, f"a worker on {self.name}")[0]

    def pids(self) -> list[int]:
        """Its daemon and what that has started."""
        if self.daemon is None or self.daemon.process.poll() is not None:
            return []
        daemon = psutil.Process(self.daemon.pid)
        return [daemon.pid, *(child.pid for child in daemon.children(recursive=True))]

    def signal_all(self, number: int) -> None:
        """As if it befell the whole board."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    @contextmanager
    def calling(self) -> Any:
        """A Client to its daemon, with its own keys; of boards on loop-back."""
        identity, context = load_identity(self.keys), zmq.Context()
        try:
            address = parse_address(self.address)
            with Client(context, identity.keys, address, identity.keys.public, self.name) as client:
                yield client
        finally:
            context.destroy(linger=0)

    def seen(self) -> dict[str, dict[str, Any]]:
        """Every board of the cluster by its name, as this one's daemon sees it."""
        if self.lab is not None:  # out of reach from here
            asked = self.run("ps", "--json")
            assert asked.wait() == 0, asked.err.text
            return {board["name"]: board for board in json.loads(asked.out.text)["boards"]}
        with self.calling() as client:
            boards = client.ask("mesh-state")["boards"]
            return {board["name"]: {**board, **board["report"]} for board in boards}

    def does(self) -> str:
        """What it says it does: "free", "hub", "computing", …"""
        return str(self.seen()[self.name]["does"])

    def await_free(self, timeout_s: float = 5.0) -> None:
        """No session has it, and no worker is left."""
        until(lambda: self.does() == "free", f"{self.name} is free", timeout_s)
        assert self.workers() == []

    def stop(self) -> int:
        """End its daemon as systemd would; its exit code."""
        assert self.daemon is not None
        self.daemon.signal(signal.SIGTERM)
        code = self.daemon.wait(10)
        self.daemon = None
        return code

    def end(self) -> None:
        """Kill what still runs."""
        for running in self._ran:
            for worker in workers_of(running.pid):
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            running.kill()
            running.out.end()
            running.err.end()


@contextmanager
def board_alone(folder: Path) -> Iterator[BoardOf]:
    """Board ada of a cluster, without a daemon so far; all that it runs ends with the block."""
    made = BoardOf("ada", folder / "ada")
    found_cluster(made.keys, "desk", "ada")
    try:
        yield made
    finally:
        made.end()


def workers_of(pid: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(pid).children()
        return [one for one in children if "picoedge.cluster.worker" in one.cmdline()]
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def measured_as(patch: pytest.MonkeyPatch, *speeds: float) -> None:
    """Sessions of this process find boards of these speeds, the hub's first, and equal links."""
    look = BoardDirectory.cluster

    def measured(directory: BoardDirectory) -> Topology:
        boards = [
            dataclasses.replace(one, compute_bytes_per_s=1e8 * speed, message_s=5e-5)
            for one, speed in zip(look(directory).boards, speeds, strict=True)
        ]
        return Topology(tuple(boards), link=LinkFacts(1e-4, 1e8))

    patch.setattr(BoardDirectory, "cluster", measured)


class ClusterOf:
    """Boards that know each other, called b1, b2, …; b1 is the hub in most tests."""

    def __init__(self, folder: Path, count: int, labs: Sequence[LabBoard] = ()) -> None:
        self.folder = folder
        lab = dict(enumerate(labs))
        self.boards = [BoardOf(f"b{i + 1}", folder / f"b{i + 1}", lab.get(i)) for i in range(count)]
        found_cluster(self.boards[0].keys, "test", "b1")

    def start(
        self, memory: str | Sequence[str] = "2G", more: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Every daemon runs, and the others have been invited in by the first.

        `more`: further options, by the board's name.
        """
        options = more or {}
        each = [memory] * len(self.boards) if isinstance(memory, str) else list(memory)
        first, *others = self.boards
        first.start("--memory", each[0])
        invites, key = Invites(first.keys), RosterFile(first.keys).roster.cluster.key
        running = []
        for board, its in zip(others, each[1:], strict=True):
            invite = invites.issue(first.address, key, 3600, Moment.now())
            words = ("--memory", its, "--join", invite, "--name", board.name)
            starting = threading.Thread(
                target=board.start, args=(*words, *options.get(board.name, ()))
            )
            starting.start()
            running.append(starting)
        for starting in running:
            starting.join()
        self.wait()

    def wait(self) -> None:
        """The first board sees all others, and all have measured themselves."""
        names = {board.name for board in self.boards}
        until(lambda: self._alive() == names, "every board is seen by b1")
        if self.boards[0].lab is None:  # else sessions wait themselves
            for board in self.boards:
                until(partial(_measured, board), f"{board.name} is measured")

    def _alive(self) -> set[str]:
        boards = self.boards[0].seen().items()
        return {name for name, board in boards if board["condition"] == "alive"}

    def shelve(self, pack: Path, boards: Sequence[int] | None = None) -> None:
        """Let these boards (all) have the pack: the same files, read only."""
        for i in range(len(self.boards)) if boards is None else boards:
            (self.boards[i].shelf / pack.name).symlink_to(pack)

    def end(self) -> None:
        """Nothing of it runs on."""
        for board in self.boards:
            board.end()

    def __getitem__(self, number: int) -> BoardOf:
        """Board b1 is [1]."""
        return self.boards[number - 1]


def _measured(board: BoardOf) -> bool:
    try:
        with board.calling() as client:
            return "facts" in client.ask("board-facts")
    except MeshError:
        return False


@contextmanager
def cluster_of(folder: Path, count: int, memory: str | Sequence[str] = "2G", **named: Any) -> Any:
    """A cluster whose daemons run, and end with the block."""
    with ExitStack() as stack:
        cluster = ClusterOf(folder, count, **named)
        stack.callback(cluster.end)
        cluster.start(memory)
        yield cluster


def last_json(running: Running) -> dict[str, Any]:
    """The report that `generate --json` ends with."""
    values: dict[str, Any] = json.loads(running.out.text.splitlines()[-1])
    return values
