"""A cluster of emulated boards to look at: `python -m hw.lab.cluster -- picoedge chat --cluster`.

It types on the boards what their owner would: `picoedge keys init` and `run` on the first, `keys
invite`, and `run --join` on the others. Only the first has the model; the others pull their shards.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hw.lab.__main__ import lab_of, parser
from hw.lab.boards import Board
from hw.lab.errors import LabError
from picoedge.errors import PicoedgeError

START_S = 60.0
LOOK_S = 0.1
LEAVE_S = 5.0
PICOEDGE = [sys.executable, "-m", "picoedge"]
ROOT = Path(__file__).resolve().parents[2]
ABOUT = """Emulate a cluster on this machine and run COMMAND on its first board, by default a
conversation. Boards have little memory and slow cards unless said otherwise, so that a small model
is too large for each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: COMMAND's own, 1, 2 for usage, 3 where boards cannot be emulated."""
    made = parser()
    made.prog, made.description = "python -m hw.lab.cluster", ABOUT
    made.add_argument("--model", help="a name of the catalogue or a path (the default model)")
    made.epilog = "COMMAND finds its daemon and the model: picoedge ps, plan MODEL --cluster."
    made.set_defaults(boards=3, memory=160 << 20, disk=20 << 20, delay=100e-6)
    options = made.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    try:
        pack = _find_pack(options.model)  # the boards cannot reach the Internet
        with lab_of(options) as lab:
            cluster = Cluster(lab.boards)
            try:
                cluster.form(pack)
                return _run(lab.boards[0], command or [*PICOEDGE, "chat", pack.stem, "--cluster"])
            finally:
                cluster.end()
    except PicoedgeError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _find_pack(model: str | None) -> Path:
    from picoedge.registry.shelf import Shelf

    return Shelf.from_environment().open(model).path


def _run(board: Board, command: Sequence[str]) -> int:
    """Run it in this terminal; its exit code. Ctrl-C is its own affair."""
    process = board.start(command, env=environment(board), stdin=None)
    while True:
        try:
            code = process.wait()
            return 128 - code if code < 0 else code
        except KeyboardInterrupt:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)


class Cluster:
    """Daemons on boards. What runs there later finds them: homes are told in the environment."""

    def __init__(self, boards: Sequence[Board]) -> None:
        self._boards = boards
        self._daemons: list[subprocess.Popen[Any]] = []

    def form(self, pack: Path) -> None:
        """Have a daemon of one cluster on every board. Raises LabError."""
        first, *others = self._boards
        first.copy(pack, f"models/{pack.name}")
        self._type(first, "keys", "init", "--name", "lab", "--board", first.name)
        self._start(first)
        for board in others:
            invite = self._type(first, "keys", "invite", "--address", first.address)
            self._start(board, "--join", invite.splitlines()[0], "--name", board.name)
        deadline = time.monotonic() + START_S
        while self._type(first, "ps").count(" alive ") < len(self._boards):
            _await(deadline, "the boards do not find each other")

    def _start(self, board: Board, *extra: str) -> None:
        words = [*PICOEDGE, "run", "--no-mdns", "--listen", board.address, *extra]
        with open(board.folder / "daemon.log", "wb") as log:
            process = board.start(words, env=environment(board), stdout=log, stderr=log)
        self._daemons.append(process)
        deadline = time.monotonic() + START_S
        while not (board.folder / "cluster" / "daemon.json").exists():
            if process.poll() is not None:
                raise LabError(f"{board.name}: {(board.folder / 'daemon.log').read_text()}")
            _await(deadline, f"{board.name} does not start")

    def _type(self, board: Board, *words: str) -> str:
        done = board.run([*PICOEDGE, *words], env=environment(board))
        if done.returncode:
            raise LabError(f"{board.name}: {done.stderr.strip()}")
        return done.stdout

    def end(self) -> None:
        """Have the daemons take leave."""
        for daemon in self._daemons:
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                daemon.kill()


def environment(board: Board) -> dict[str, str]:
    """Its own homes, in its folder, and nothing of this user's."""
    kept = {name: value for name, value in os.environ.items() if "PICOEDGE" not in name}
    folder = board.folder
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PICOEDGE_CLUSTER": str(folder / "cluster"),
        "PICOEDGE_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_STATE_HOME": str(folder / "state"),
    }


def _await(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise LabError(f"{what} within {START_S:.0f} s")
    time.sleep(LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
