"""The row `power_cut`: everything ends at a random moment, and what was promised must be there."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.children import BenchError
from bench.life.boards import PICOEDGE, LifeBoard, LifeBoards, life_boards
from bench.life.desk.session import N_CTX, Session
from bench.life.faults.preload import compiled
from bench.life.rows import Settings
from bench.life.verdict.judge import WHOLE
from bench.life.verdict.reference import Reference
from bench.power.disk import Disk
from bench.random_gguf import write_gguf
from bench.random_models import Shape
from bench.report import Measured
from hw.lab.processes import signal_all
from picoedge.store.pack.atomic_folder import is_passing

CUTS = 30
TINY = Shape(256, 768, 8, 4, 2, 4000, 512)
BACK_S, PACK_S = 90.0, 120.0
# From when something begins until the cut: from before its first write to after its last.
MOMENTS = {"pack": (0.2, 5.0), "pull": (0.5, 8.0), "join": (0.2, 4.0), "chat": (0.0, 4.0)}
KINDS = tuple(MOMENTS)
PACKER, JOINER = 1, 2


@dataclass
class Cut:
    """One power cut: when it came, what it took, and what was wrong afterwards."""

    kind: str
    after_s: float
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class PowerLine:
    """All boards hang on it."""

    def __init__(
        self, boards: LifeBoards, library: Path, gguf: Path, reference: Reference, pack: str
    ) -> None:
        self._boards, self._gguf, self._reference = boards, gguf, reference
        self._disks = [
            Disk(library, each.board.folder, each.board.folder.parent / f"shadow-{each.board.name}")
            for each in boards.all
        ]
        for each, disk in zip(boards.all, self._disks, strict=True):
            each.preloaded = disk.environment()
        self._cut = Cut("", 0.0)
        self.session = Session(boards[0], reference, pack, lambda why: self._cut.wrong.append(why))
        self._process: subprocess.Popen[Any] | None = None
        self._invite, self._joined = "", 0

    def suffer(self, kind: str, dice: random.Random) -> Cut:
        """Begin something, cut the power, and see that all is well again."""
        self._cut = Cut(kind, dice.uniform(*MOMENTS[kind]))
        try:
            self._prepare(kind)
            talking = self._begin(kind)
            time.sleep(self._cut.after_s)
            done = self._process is not None and self._process.poll() == 0
            self._power_off(dice)
            if talking is not None:
                talking.join()
            self._power_on(kind)
            self._check(kind, done)
        except (BenchError, subprocess.TimeoutExpired, OSError) as error:
            self._cut.wrong.append(str(error)[-800:])
        finally:
            self._process = None
            self._end_all()
        return self._cut

    # -- before ------------------------------------------------------------------------------------

    def _prepare(self, kind: str) -> None:
        """All boards run and all that is there is on their disks."""
        joiner = self._boards[JOINER]
        if kind == "pull":
            _remove(joiner.board.folder / "models")
        absent = kind == "join" or not _is_member(joiner)
        if absent:
            _remove(joiner.board.folder / "cluster")
        for disk in self._disks:
            disk.begin()
        for index, each in enumerate(self._boards.all):
            if not (absent and index == JOINER):
                each.start()
        others = len(self._boards.all) - absent
        self._boards.await_all(time.monotonic() + BACK_S, others)
        if absent and kind != "join":  # the join before came to nothing
            self._join()
            self._boards.await_all(time.monotonic() + BACK_S)

    def _join(self) -> None:
        """Let the third board in, under a new name: a revoked name is not used again."""
        first, joiner = self._boards[0], self._boards[JOINER]
        first.type("keys", "revoke", self._joiner_name())
        self._joined += 1
        self._invite = self._typed(first, "keys", "invite").splitlines()[0]
        joiner.start("--join", self._invite, "--name", self._joiner_name())

    def _joiner_name(self) -> str:
        return f"guest{self._joined}" if self._joined else self._boards[JOINER].board.name

    def _begin(self, kind: str) -> threading.Thread | None:
        if kind == "pack":
            packer = self._boards[PACKER]
            words = [
                "pack",
                str(self._gguf),
                "--out",
                str(packer.board.folder / "models/tiny.pico"),
            ]
            self._process = packer.board.start(
                [*PICOEDGE, *words], env=packer.environment(),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            return None
        if kind == "join":
            self._join()
            return None
        talking = threading.Thread(target=self._talk)
        talking.start()
        deadline = time.monotonic() + BACK_S
        while kind == "chat" and not self.session.is_talking and time.monotonic() < deadline:
            time.sleep(0.05)
        return talking

    def _talk(self) -> None:
        """Ask until the chat is gone."""
        with suppress(BenchError):
            self.session.open(tries=1)
            while self.session.is_open and self.session.ask() is not None:
                pass

    # -- the cut -----------------------------------------------------------------------------------

    def _power_off(self, dice: random.Random) -> None:
        self._kill_all()
        for each, disk in zip(self._boards.all, self._disks, strict=True):
            lost = disk.cut(dice)
            self._cut.lost += [f"{each.board.name}: {name}" for name in lost.folders + lost.files]

    def _kill_all(self) -> None:
        groups = [each.board for each in self._boards.all]
        signal_all([pid for board in groups for pid in board.pids()], signal.SIGKILL)
        for board in groups:
            board.kill()
        for each in self._boards.all:
            each.daemon = None

    def _power_on(self, kind: str) -> None:
        """Run each unit's command line; on a board that had not joined yet, `--join` again."""
        for disk in self._disks:
            disk.begin()
        late = kind == "join" and not _is_member(self._boards[JOINER])
        for index, each in enumerate(self._boards.all):
            if not (late and index == JOINER):
                each.start()
        if late:
            self._boards.await_all(time.monotonic() + BACK_S, len(self._boards.all) - 1)
            self._boards[JOINER].start("--join", self._invite, "--name", self._joiner_name())
        self._boards.await_all(time.monotonic() + BACK_S)

    # -- after -------------------------------------------------------------------------------------

    def _check(self, kind: str, done: bool) -> None:
        rosters = {self._members(each) for each in self._boards.all}
        if len(rosters) != 1:
            self._cut.wrong.append(f"the boards' rosters differ: {rosters}")
        self._check_shelves()
        if kind == "pack":
            self._check_pack(done)
        heard = self.session.open() or self.session.ask()
        if heard is None or heard.outcome != WHOLE or not heard.same:
            self._cut.wrong.append(f"no answer as before: {heard}")

    def _check_shelves(self) -> None:
        for each in self._boards.all:
            for pack in (each.board.folder / "models").glob("*.pico"):
                self._typed(each, "verify", str(pack))

    def _check_pack(self, done: bool) -> None:
        packer = self._boards[PACKER]
        pack = _tiny_on(packer)
        if done and not pack.exists():
            self._cut.wrong.append("a pack that was finished is gone")
        self._typed(packer, "pack", str(self._gguf), "--out", str(pack))
        if left := left_on_shelf(pack.parent):
            self._cut.wrong.append(f"left on the shelf after packing again: {left}")
        _remove(pack)

    def _members(self, each: LifeBoard) -> str:
        """The boards let in, by this board's roster."""
        try:
            shown = json.loads(self._typed(each, "keys", "show", "--json"))
            return json.dumps(sorted([one["public"], one["name"]] for one in shown["members"]))
        except (ValueError, KeyError):
            return f"{each.board.name} has none"

    def _typed(self, each: LifeBoard, *words: str) -> str:
        done = each.type(*words, timeout_s=PACK_S)
        if done.returncode:
            said = done.stderr.strip()[-300:]
            self._cut.wrong.append(f"{each.board.name}: {' '.join(words[:2])}: {said}")
        return done.stdout

    def _end_all(self) -> None:
        if self.session.is_open:
            self.session.leave()
        self._boards.stop()
        self._kill_all()


def _is_member(each: LifeBoard) -> bool:
    """Whether its unit could start: `run` needs the identity of a joined board."""
    return each.type("keys", "show").returncode == 0


def left_on_shelf(shelf: Path) -> list[str]:
    """Folders there that only a writer at work should have, by name."""
    return sorted(path.name for path in shelf.iterdir() if is_passing(path.name))


def _tiny_on(each: LifeBoard) -> Path:
    return each.board.folder / "models" / "tiny.pico"


def _remove(path: Path) -> None:
    subprocess.run(["rm", "-rf", str(path)], check=True)


def power_cut(settings: Settings, rounds: int) -> list[Measured]:
    """Cuts after which all was whole and an answer came, of thirty for each round."""
    pack, folder = settings.pack(), settings.models.folder
    dice, seen = random.Random(settings.seeds[0]), list[Cut]()
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        there = Path(scratch)
        write_gguf(there / "tiny.gguf", TINY)
        faults, shadow = (compiled(f, there) for f in ("life/faults/faults.c", "power/shadow.c"))
        with (
            life_boards(pack, folder, 3, faults, []) as boards,
            closing(Reference(pack, N_CTX, there)) as reference,
        ):
            boards.stop()
            line = PowerLine(boards, shadow, there / "tiny.gguf", reference, pack.stem)
            try:
                for number in range(CUTS * rounds):
                    seen.append(line.suffer(KINDS[number % len(KINDS)], dice))
                    _tell(settings.tell, number, seen[-1])
            finally:
                line.session.close()
    whole = [float(not cut.wrong) for cut in seen]
    raw = {"cuts": [vars(cut) for cut in seen]}
    return [Measured("power_cut", sum(whole), tuple(whole), raw)]


def _tell(tell: Callable[[str], None], number: int, cut: Cut) -> None:
    tell(f"cut {number + 1}: {cut.kind}, after {cut.after_s:.2f} s; lost {cut.lost}")
    for why in cut.wrong:
        tell(f"  WRONG: {why}")
