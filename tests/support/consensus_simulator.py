"""A cluster in one process, by one seed: network, disks, clocks of boards, and what must hold.

Every frame may be lost, repeated, delayed past later ones, or arrive after its sender or its
receiver has restarted. A crash falls between any two events, also between a record's write and what
waits for it; a write in progress is then done, not done, or torn.
"""

from __future__ import annotations

import heapq
import json
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from consensus_board import BEGINNING, NOBODY, RUN, Disk, Shell
from consensus_checks import Checks
from consensus_step import SEGMENTS

from picoedge.mesh.consensus import codec
from picoedge.mesh.consensus import events as e
from picoedge.mesh.consensus.configuration import (
    Ballot,
    BoardId,
    Configuration,
    Epoch,
    RunGeneration,
    Snapshot,
)
from picoedge.mesh.consensus.record import StoredRecord

REPLAYED = 100  # frames kept, to be repeated much later
CODED = 32  # one message in so many goes through JSON


class Simulator:
    """Boards `a`, `b`, ...; the first `first` of them begin the run together."""

    has_relays = True

    def __init__(self, seed: int, n: int = 6, first: int = 3, witnesses: int = 2) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.keys = [chr(ord("a") + i) for i in range(n)]
        self.witnesses = set(self.keys[n - witnesses :] if witnesses else [])
        self.incarnations = dict.fromkeys(self.keys, 1)
        self.slowness = dict.fromkeys(self.keys, 1.0)
        self.disk_slowness = dict.fromkeys(self.keys, 1.0)
        self.uplinks = {key: self.chance.choice((1, 2, 4)) for key in self.keys}
        self.cuts: set[tuple[str, str]] = set()
        self.dead: set[str] = set()
        self.gone: set[str] = set()
        self.revoked: set[str] = set()
        self.leaving: set[str] = set()
        self.paused: dict[str, list[Any]] = {}
        self.loss = 0.03
        # The next effect or message with this name makes something happen just before it.
        self.ambush: tuple[str, Callable[[Shell, Any], None]] | None = None
        self.late: dict[str, tuple[float, float]] = {}  # kind of frame: until when, seconds more
        self.counts: Counter[str] = Counter()
        self.checks = Checks(self)
        self.past: deque[tuple[str, BoardId, Any]] = deque(maxlen=REPLAYED)
        self.filter: Callable[[str, str, Any], bool] | None = None
        self.hook: Callable[[Shell, Any], None] | None = None
        self._queue: list[Any] = []
        self._number = 0
        beginning = Snapshot(BEGINNING, 0, None), (0,) * SEGMENTS
        self.disks = {key: Disk(beginning) for key in self.keys}
        self.shells: dict[str, Shell] = {}
        begun = self.first_configuration(first)
        self.checks.begin(begun)
        for key in self.keys:
            self.begin(key, begun)

    def first_configuration(self, first: int) -> Configuration:
        """The first boards are members; a witness makes their number odd."""
        members = tuple(BoardId(key, 1) for key in self.keys[:first])
        witness = tuple(BoardId(key, 1) for key in sorted(self.witnesses))[: 1 - first % 2]
        return Configuration(
            RUN, Epoch(BEGINNING, 0), Ballot(0, 0, NOBODY), members, members + witness, (), 0,
            members[0], (0,) * first, (1,) * first,
            tuple(SEGMENTS // first + (i < SEGMENTS % first) for i in range(first)),
            restores=Snapshot(BEGINNING, 0, None),
        )  # fmt: skip

    def begin(self, key: str, begun: Configuration) -> None:
        """The first process of a board."""
        board = BoardId(key, 1)
        takes_part = board in begun.voters
        self.shells[key] = Shell(self, key, begun if takes_part else None)
        if takes_part:
            self.disks[key].finish(1, StoredRecord(begun))
        self.shells[key].start()
        self._push(self.now + self.chance.random(), ("tick", key))

    # Time

    def _push(self, when: float, what: Any) -> None:
        self._number += 1
        heapq.heappush(self._queue, (when, self._number, what))

    def at(self, when: float, board: BoardId, event: Any) -> None:
        """Something happens to this very process at a time."""
        self._push(when, ("process", board, event))

    def run(self, seconds: float, faults: Callable[[], float] | None = None) -> None:
        """Let time pass; `faults` makes one and returns when the next is due."""
        end = self.now + seconds
        due = self.now + self.chance.random() * 2 if faults else end + 1
        while self._queue and self._queue[0][0] <= end:
            if faults and due <= self._queue[0][0]:
                self.now = max(self.now, due)
                due = self.now + faults()
                continue
            when, _, what = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            self._happen(what)
        self.now = end

    def _happen(self, what: Any) -> None:
        match what:
            case ("process", board, event):
                if self.incarnations[board.key] == board.incarnation:
                    self.deliver(board.key, event)
            case ("frame", source, key, sender, relayed, frame):
                if (source, key) not in self.cuts:
                    self.deliver(key, ("frame", sender, relayed, frame))
            case ("written", board, sequence, record):
                self._written(board, sequence, record)
            case ("kept", board, found):
                self._kept(board, found)
            case ("tick", key):
                self._push(self.now + 0.7 + 0.3 * self.chance.random(), what)
                if key not in self.paused:  # a stopped process ticks once when it wakes
                    self.deliver(key, ("tick",))

    def deliver(self, key: str, event: Any) -> None:
        """To the process of a board, now or when it wakes."""
        if key in self.dead:
            return
        if key in self.paused:
            self.paused[key].append(event)
            return
        shell = self.shells[key]
        shell.on(event)
        if self.hook is not None:
            self.hook(shell, event)

    # Network and disks

    def transmit(
        self, source: str, key: str, sender: BoardId, frame: Any, *, relayed: bool
    ) -> None:
        """A frame on its way: perhaps lost, perhaps twice, later frames perhaps earlier."""
        chance = self.chance
        if self.filter is not None and not self.filter(source, key, frame):
            return
        if chance.random() < self.loss:
            return
        if frame[0] == "control":
            if chance.random() < 1 / CODED:
                frame = ("control", frame[1], coded(frame[2]))
            if frame[1]:
                self.past.append((key, sender, frame))
        more = self.delay_of(frame) if self.late else 0.0
        for _ in range(1 + (chance.random() < self.loss)):
            delay = 0.004 + chance.random() ** 3 * 0.3 + more * chance.random()
            self._push(self.now + delay, ("frame", source, key, sender, relayed, frame))

    def delay_of(self, frame: Any) -> float:
        """Seconds more for kinds of frames that are late for a while."""
        inner = frame[2] if frame[0] == "via" else frame
        kind = type(inner[2]).__name__ if inner[0] == "control" else inner[0]
        until, more = self.late.get(kind, (0.0, 0.0))
        return more if self.now < until else 0.0

    def transmit_at(self, delay: float, source: str, key: str, sender: BoardId, frame: Any) -> None:
        """A frame that arrives for certain."""
        self._push(self.now + delay, ("frame", source, key, sender, False, frame))

    def store(self, shell: Shell, effect: e.Store) -> None:
        """Writes follow each other."""
        disk, slow = shell.disk, self.disk_slowness[shell.key]
        disk.writing.append((effect.sequence, effect.record))
        seconds = (0.02 + 0.2 * self.chance.random()) * slow * len(disk.writing)
        self._push(self.now + seconds, ("written", shell.me, effect.sequence, effect.record))

    def _written(self, board: BoardId, sequence: int, record: StoredRecord) -> None:
        disk = self.disks[board.key]
        if self.incarnations[board.key] != board.incarnation or board.key in self.dead:
            return
        while disk.writing and disk.writing[0][0] <= sequence:
            disk.finish(*disk.writing.popleft())
        self.deliver(board.key, ("machine", e.Stored(sequence)))

    def write_checkpoint(self, shell: Shell, found: Any) -> None:
        """It is there when it is whole."""
        seconds = (0.02 + 0.2 * self.chance.random()) * self.disk_slowness[shell.key]
        self._push(self.now + seconds, ("kept", shell.me, found))

    def _kept(self, board: BoardId, found: Any) -> None:
        if self.incarnations[board.key] != board.incarnation or board.key in self.dead:
            return
        disk = self.disks[board.key]
        if (found[0].generation, found[0].step) > (
            disk.checkpoint[0].generation, disk.checkpoint[0].step
        ):  # fmt: skip
            disk.checkpoint = self.shells[board.key].worker.checkpoint = found

    # What befalls boards

    def crash(self, key: str) -> None:
        """The power goes."""
        if key not in self.dead:
            self.dead.add(key)
            self.paused.pop(key, None)
            self.disks[key].crash(self.chance)
            self.incarnations[key] += 1

    def boot(self, key: str) -> None:
        """It comes back."""
        if key in self.dead and key not in self.gone:
            self.dead.discard(key)
            self.shells[key] = Shell(self, key, None)
            self.shells[key].start()

    def reboot(self, key: str) -> None:
        """Both."""
        self.crash(key)
        self.boot(key)

    def is_ambushed(self, shell: Shell, effect: e.Effect) -> bool:
        """Whether the process dies before an effect: see `ambush`."""
        waiting, name = self.ambush, type(getattr(effect, "message", effect)).__name__
        if waiting is None or name != waiting[0]:
            return False
        self.ambush = None
        waiting[1](shell, effect)
        return shell.key in self.dead or self.incarnations[shell.key] != shell.me.incarnation

    def pause(self, key: str) -> None:
        """The process is stopped."""
        if key not in self.dead:
            self.paused.setdefault(key, [])

    def wake(self, key: str) -> None:
        """It goes on with what was queued, and ticks once."""
        for event in [*self.paused.pop(key, []), ("tick",)]:
            self.deliver(key, event)

    def lose(self, key: str) -> None:
        """It never comes back."""
        self.crash(key)
        self.gone.add(key)

    def split(self, side: set[str]) -> None:
        """Nothing passes between one side and the other."""
        self.cuts = {(a, b) for a in self.keys for b in self.keys if (a in side) != (b in side)}

    def cut(self, source: str, key: str) -> None:
        """One way only."""
        self.cuts.add((source, key))

    def heal(self) -> None:
        """All links are there."""
        self.cuts.clear()

    def revoke(self, revoked: str) -> None:
        """The key is no longer allowed; each board hears of it at its own time."""
        self.revoked.add(revoked)
        for key in self.keys:
            board = BoardId(key, self.incarnations[key])
            when = self.now + self.chance.random()
            self.at(when, board, ("machine", e.Revoked(revoked)))

    def tell(self, key: str, event: e.MachineEvent) -> None:
        """The owner, or a policy, tells a board's machine something."""
        if isinstance(event, e.Leave):
            self.leaving.add(key)
        elif isinstance(event, e.Join):
            self.leaving.discard(key)
        self.deliver(key, ("machine", event))

    # What is so

    def up(self) -> list[str]:
        """Boards that run and are allowed."""
        out = self.dead | self.revoked | set(self.paused)
        return [key for key in self.keys if key not in out]

    def best(self) -> tuple[RunGeneration, int]:
        """The newest generation with steps, and its last step."""
        return max(self.checks.top.items(), default=(BEGINNING, 0))

    def newest(self) -> Configuration | None:
        """The newest configuration that a running board knows."""
        known = [self.shells[key].machine.known for key in self.up()]
        return max((c for c in known if c), key=lambda c: c.epoch, default=None)

    def goes_on(self) -> bool:
        """Whether the run needs no owner: a quorum is up, with a state or with all voters."""
        newest, up = self.newest(), set(self.up())
        if newest is None:
            return False
        keys = [voter.key for voter in newest.voters]
        present = [key for key in keys if key in up]
        half = 2 * len(present) == len(keys) and keys[0] in up
        if not half and 2 * len(present) <= len(keys):
            return False
        stateful = any(
            self.shells[m.key].me == m and self.shells[m.key].worker.live
            for m in newest.members if m.key in up
        )  # fmt: skip
        return stateful or len(present) == len(keys)


def coded(message: Any) -> Any:
    """A message as it is when it has been JSON."""
    found = codec.decode_message(json.loads(json.dumps(codec.encode_message(message))), "a board")
    assert found == message, (found, message)
    return found
