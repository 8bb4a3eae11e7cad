"""A lab: emulated boards on one machine, from the first namespace to the last leftover."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from types import TracebackType

from hw.lab import leftovers
from hw.lab.boards import Board, BoardLimits
from hw.lab.cgroups import Group, loosen
from hw.lab.disks import disk_of
from hw.lab.errors import LabError
from hw.lab.hierarchies import Hierarchy, hierarchy
from hw.lab.leftovers import Record
from hw.lab.links import LinkShape
from hw.lab.namespaces import Namespace, check, python_path
from hw.lab.networks import Link, Network, Port
from hw.lab.plain import PlainNetwork
from hw.lab.probe import Achieved, measure
from hw.lab.shaped import ShapedNetwork

MAX_BOARDS = 200
_CLOSE_S = 30.0


class Lab:
    """Emulated boards, as a context manager; all of it is gone afterwards, also if this is killed.

    `link` None: plain veth pairs. A LinkShape: TAP devices and a switch that shapes each link,
    changeable later by `link`. Folders are made beneath `folder` (the temporary one), which must
    be on a disk for its rate to be limited. Raises LabError with the missing thing and the remedy.
    """

    def __init__(
        self,
        boards: int,
        link: LinkShape | None = None,
        limits: BoardLimits | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if not 1 <= boards <= MAX_BOARDS:
            raise LabError(f"a lab has 1 to {MAX_BOARDS} boards, not {boards}")
        self._count, self._shape = boards, link
        self._limits = limits or BoardLimits()
        self._base = Path(folder or tempfile.gettempdir()).resolve()
        self._name = f"picoedge-lab-{secrets.token_hex(4)}"
        self._undo = ExitStack()
        self._network: Network | None = None
        self.boards: list[Board] = []

    def __enter__(self) -> Lab:
        check(with_switch=self._shape is not None)
        with ExitStack() as undo:
            self._build(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and remove all that was made; done twice it does nothing."""
        self._undo.close()

    # -- links -------------------------------------------------------------------------------------

    def link(self, a: int | Board, b: int | Board, *, one_way: bool = False) -> Link:
        """The link of two boards, given or by index; `one_way`: only from a to b."""
        one, other = self._index(a), self._index(b)
        if one == other:
            raise LabError(f"{self.boards[one].name} has no link to itself")
        return Link(self.network, [(one, other)] if one_way else [(one, other), (other, one)])

    @property
    def network(self) -> Network:
        """What joins the boards. Raises LabError outside of `with`."""
        if self._network is None:
            raise LabError("the lab is not open", "use it in a with statement")
        return self._network

    def _index(self, board: int | Board) -> int:
        return board if isinstance(board, int) else self.boards.index(board)

    def counts(self) -> dict[str, int]:
        """Frames until now: passed, lost (by chance), cut, full. Raises LabError if plain."""
        return self.network.counts()

    def measure(
        self, pairs: Sequence[tuple[int, int]] | None = None, *, seconds: float = 1.0
    ) -> list[Achieved]:
        """What the links really do, outside the boards' limits: a ping and a bulk transfer.

        `pairs` are indices, (from, to) for the bulk; None: each two boards, once.
        """
        if pairs is None:
            pairs = list(combinations(range(self._count), 2))
        return [measure(self.boards[a], self.boards[b], seconds) for a, b in pairs]

    # -- building ----------------------------------------------------------------------------------

    def _build(self, undo: ExitStack) -> None:
        """Each thing is written down, or owned by a descriptor, before it exists."""
        leftovers.sweep()
        record = Record.create(leftovers.RECORDS / self._name)
        undo.callback(record.close)
        _start_guardian(record, undo)
        undo.callback(self._reap)
        folder = self._base / self._name
        record.add("folder", folder)
        folder.mkdir(mode=0o700)
        namespaces = self._make_namespaces(undo)
        net = f"10.77.{1 + secrets.randbelow(254)}"
        joined = [(space, f"{net}.{1 + index}") for index, space in enumerate(namespaces)]
        if self._shape is None:
            self._network = PlainNetwork(joined)
        else:
            self._network = ShapedNetwork(joined, self._shape)
        undo.callback(self._network.close)
        self._make_boards(record, joined)
        undo.callback(self._kill)

    def _make_namespaces(self, undo: ExitStack) -> list[Namespace]:
        namespaces = []
        for _ in range(self._count):
            namespaces.append(Namespace())
            undo.callback(namespaces[-1].close)
        return namespaces

    def _make_boards(self, record: Record, joined: list[tuple[Namespace, str]]) -> None:
        where, disk = self._where(), self._disk()
        environment = {"LAB_ADDRESSES": ",".join(address for _, address in joined)}
        for index, (namespace, address) in enumerate(joined):
            name = f"board{1 + index}"
            group = Group(where, f"{self._name}-{name}", disk)
            for path in group.folders:
                record.add("group", path)
            group.make()
            folder = self._base / self._name / name
            folder.mkdir()
            port = Port(self.network, index, self._count)
            board = Board(name, address, folder, group, namespace, port, environment)
            _limit(board, self._limits)
            self.boards.append(board)

    def _where(self) -> Hierarchy:
        """With the CPU's controller where there is one, or where it is asked for."""
        try:
            return hierarchy(needs=("memory", "io", "cpu"))
        except LabError:
            if self._limits.cpu is not None:
                raise
            return hierarchy()

    def _disk(self) -> str | None:
        try:
            return disk_of(self._base)
        except LabError:
            if self._limits.disk_bytes_per_s is not None:
                raise
            return None

    def _kill(self) -> None:
        for board in self.boards:
            for folder in board.group.folders:
                loosen(folder)
            board.kill()

    def _reap(self) -> None:
        for board in self.boards:
            board.close()


def _limit(board: Board, limits: BoardLimits) -> None:
    board.limit(
        cpu=limits.cpu,
        memory_bytes=limits.memory_bytes,
        disk_bytes_per_s=limits.disk_bytes_per_s,
        port_bytes_per_s=limits.port_bytes_per_s,
    )
    if limits.disk_bytes_per_s is None and board.group.disk is not None:
        board.group.limit_reading(None)  # version 1 counts only then


def _start_guardian(record: Record, undo: ExitStack) -> None:
    """Start what cleans up, and have it do so at the end; should it be gone, this does."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "hw.lab.guardian",
            str(os.getpid()),
            str(record.path),
            str(record.fd),
        ],
        stdin=subprocess.PIPE,
        pass_fds=[record.fd],
        env=python_path(),
        cwd="/",
        start_new_session=True,
    )

    def end() -> None:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_CLOSE_S)
        finally:
            process.kill()
            process.wait()
            record.undo()

    undo.callback(end)
