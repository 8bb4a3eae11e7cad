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
from hw.lab.cgroups import Group
from hw.lab.disks import disk_of
from hw.lab.errors import LabError
from hw.lab.hierarchies import Hierarchy, hierarchy
from hw.lab.leftovers import Record
from hw.lab.links import LinkShape
from hw.lab.namespaces import Namespace, check, python_path
from hw.lab.plain import PlainNetwork
from hw.lab.probe import Achieved, measure
from hw.lab.shaped import ShapedNetwork

MAX_BOARDS = 200
_CLOSE_S = 30.0


class Link:
    """What is between two boards: one way, or both."""

    def __init__(self, network: PlainNetwork | ShapedNetwork, ways: list[tuple[int, int]]) -> None:
        self._network, self._ways = network, ways

    def shape(self, shape: LinkShape) -> None:
        """Give it another delay, rate, jitter and loss, now. Raises LabError on plain links."""
        self._network.shape(self._ways, shape)

    def cut(self) -> None:
        """Lose whatever is sent over it; nobody is told."""
        self._network.cut(self._ways, True)

    def heal(self) -> None:
        """Undo the cut; what was lost stays lost."""
        self._network.cut(self._ways, False)


class Lab:
    """Emulated boards, as a context manager; all of it is gone afterwards, also if this is killed.

    `link` None: plain veth pairs. A LinkShape: TAP devices and a switch that shapes each link,
    changeable later by `link`. Folders are made beneath `folder` (the temporary one), which must
    be on a disk for its rate to be limited. Raises LabError with what is missing and the remedy.
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
        self._network: PlainNetwork | ShapedNetwork | None = None
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
    def network(self) -> PlainNetwork | ShapedNetwork:
        """What joins the boards. Raises LabError outside of `with`."""
        if self._network is None:
            raise LabError("the lab is not open", "use it in a with statement")
        return self._network

    def _index(self, board: int | Board) -> int:
        return board if isinstance(board, int) else self.boards.index(board)

    def _set_links(self, board: Board, cut: bool) -> None:
        own = self._index(board)
        others = [index for index in range(self._count) if index != own]
        ways = [way for other in others for way in ((own, other), (other, own))]
        self.network.cut(ways, cut)

    def measure(
        self, pairs: Sequence[tuple[int, int]] | None = None, *, seconds: float = 0.5
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
        self.boards = self._make_boards(record, namespaces)
        joined = list(zip(namespaces, (board.address for board in self.boards), strict=True))
        if self._shape is None:
            self._network = PlainNetwork(joined)
        else:
            self._network = ShapedNetwork(joined, self._shape)
        undo.callback(self._network.close)
        undo.callback(self._kill)

    def _make_namespaces(self, undo: ExitStack) -> list[Namespace]:
        namespaces = []
        for _ in range(self._count):
            namespaces.append(Namespace())
            undo.callback(namespaces[-1].close)
        return namespaces

    def _make_boards(self, record: Record, namespaces: list[Namespace]) -> list[Board]:
        where, disk = self._where(), self._disk()
        net = f"10.77.{1 + secrets.randbelow(254)}"
        addresses = [f"{net}.{1 + index}" for index in range(self._count)]
        boards = []
        for index, (namespace, address) in enumerate(zip(namespaces, addresses, strict=True)):
            name = f"board{1 + index}"
            group = Group(where, f"{self._name}-{name}", disk)
            for path in group.folders:
                record.add("group", path)
            group.make()
            folder = self._base / self._name / name
            folder.mkdir()
            environment = {"LAB_ADDRESSES": ",".join(addresses)}
            board = Board(name, address, folder, group, namespace, environment, self._set_links)
            _limit(board, self._limits)
            boards.append(board)
        return boards

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
            board.kill()

    def _reap(self) -> None:
        for board in self.boards:
            board.close()


def _limit(board: Board, limits: BoardLimits) -> None:
    board.limit(
        cpu=limits.cpu,
        memory_bytes=limits.memory_bytes,
        disk_bytes_per_s=limits.disk_bytes_per_s,
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
