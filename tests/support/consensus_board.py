"""One board of the simulated cluster: its disk, and the process around its machine and worker."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from consensus_step import SEGMENTS
from consensus_worker import Worker

from picoedge.mesh.consensus import events as e
from picoedge.mesh.consensus.configuration import (
    NOBODY,
    BoardId,
    Configuration,
    Role,
    RunGeneration,
)
from picoedge.mesh.consensus.machine import Machine
from picoedge.mesh.consensus.record import PLACE_BYTES, StoredRecord, encode_stored, newest_record

RUN = "run"
BEGINNING = RunGeneration(0, NOBODY)


class Disk:
    """Two places of a record, and the newest checkpoint. A crash may tear the write in progress."""

    def __init__(self, checkpoint: Any) -> None:
        self.places: list[bytes] = [b"", b""]
        self.records: dict[int, StoredRecord] = {}
        self.checkpoint = checkpoint
        self.writing: deque[tuple[int, StoredRecord]] = deque()

    def finish(self, sequence: int, record: StoredRecord) -> None:
        """A record is whole on the disk."""
        self.records = {n: r for n, r in self.records.items() if n > sequence - 2}
        self.records[sequence] = record

    def crash(self, chance: random.Random) -> None:
        """The first write in progress is whole, torn, or not begun; later ones are not."""
        if self.writing:
            sequence, record = self.writing[0]
            fate = chance.random()
            if fate < 0.4:
                self.finish(sequence, record)
            elif fate < 0.7:
                self.tear(sequence, record, chance)
        self.writing.clear()

    def tear(self, sequence: int, record: StoredRecord, chance: random.Random) -> None:
        """Bytes up to somewhere are new, the others those of the record in this place before."""
        old = self.records.pop(sequence - 2, None)
        before = encode_stored(old, sequence - 2) if old else bytes(PLACE_BYTES)
        new = encode_stored(record, sequence)
        end = chance.randrange(1, len(new.rstrip(b"\0")))
        other = self.records.get(sequence - 1)
        places = [new[:end] + before[end:], encode_stored(other, sequence - 1) if other else b""]
        found = newest_record((places[0], places[1]), "the disk")
        if found == (sequence, record):
            self.finish(sequence, record)  # what was not written was the same before
        else:
            assert found == (None if other is None else (sequence - 1, other)), "torn, and read"

    def newest(self) -> tuple[int, StoredRecord] | None:
        """What a process finds when it starts."""
        if not self.records:
            return None
        sequence = max(self.records)
        return sequence, self.records[sequence]


class Shell:
    """One process of a board: its machine, its worker, and the way between them and the network."""

    def __init__(self, sim: Any, key: str, first: Configuration | None) -> None:
        self.sim, self.key = sim, key
        self.me = BoardId(key, sim.incarnations[key])
        self.role = Role.WITNESS if key in sim.witnesses else Role.TRAINER
        self.disk = sim.disks[key]
        self.relays: dict[str, str] = {}
        self.worker = Worker(self.me, self, self.disk.checkpoint, lambda: sim.now)
        self.worker.is_witness = self.role is Role.WITNESS
        self.machine = Machine(
            self.me, self.role, RUN, SEGMENTS, record=self.disk.newest(), first=first,
            uplink=sim.uplinks[key], joins=key not in sim.leaving,
        )  # fmt: skip
        for revoked in sorted(sim.revoked):
            self.machine.on(e.Revoked(revoked))
        self._after = 0.0

    def start(self) -> None:
        """What a new process does first."""
        self.carry_out(self.machine.start())

    def feed(self, event: e.MachineEvent) -> None:
        """Give the machine an event, and carry out what it asks for."""
        self.carry_out(self.machine.on(event))

    def carry_out(self, effects: list[e.Effect]) -> None:
        """In their order; the worker is asked a moment later, over a pipe that keeps order."""
        for effect in effects:
            if self.sim.is_ambushed(self, effect):
                return  # it was carried out up to here
            match effect:
                case e.Send():
                    self.sim.checks.sent(self, effect.message)
                    self.route(effect.key, ("control", effect.to, effect.message))
                case e.Broadcast():
                    for key in self.sim.keys:
                        if key != self.key:
                            self.route(key, ("control", 0, effect.message))
                case e.Store():
                    self.sim.store(self, effect)
                case e.Declined():
                    self.sim.counts["declined"] += 1
                case e.SendByRelay(key=key, via=None):
                    self.relays.pop(key, None)
                case e.SendByRelay(key=key, via=via):
                    self.relays[key] = via
                case _:
                    self.ask_worker(effect)

    def ask_worker(self, effect: e.Effect) -> None:
        """Over a pipe: later, and in order."""
        if isinstance(effect, e.Adopt):
            self.sim.checks.adopted(self, effect.configuration)
        delay = 0.001 + (self.sim.chance.random() * 0.1 if self.sim.chance.random() < 0.1 else 0)
        self._after = max(self._after, self.sim.now + delay)
        self.sim.at(self._after, self.me, ("worker", effect))

    def on(self, event: Any) -> None:
        """Something happens to this process."""
        match event:
            case ("frame", sender, relayed, frame):
                self.on_frame(sender, relayed, frame)
            case ("worker", e.Adopt(configuration=configuration)):
                self.worker.adopt(configuration)
                self.reported()
            case ("worker", e.Freeze(epoch=epoch)):
                self.worker.freeze(epoch)
                self.feed(e.Frozen(epoch, self.worker.report()))
            case ("worker", e.Fence(ballot=ballot, start=start)):
                self.feed(e.Fenced(ballot, self.worker.set_fence(start)))
                self.worker.work()
            case ("computed", identity, step, batch):
                self.worker.computed(identity, step, batch)
            case ("reported",):
                self.feed(e.Reported(self.worker.report()))
            case ("machine", told):
                self.feed(told)
            case ("tick",):
                self.worker.tick()
                self.feed(e.Reported(self.worker.report()))
                self.feed(e.Tick())

    def on_frame(self, sender: BoardId, relayed: bool, frame: Any) -> None:
        """A frame of another board: for the machine, the worker, or to be passed on."""
        if sender.key in self.machine.board.hearing.revoked:
            return
        match frame:
            case ("via", key, inner):
                self.sim.transmit(self.key, key, sender, inner, relayed=True)
            case ("control", to, message):
                self.feed(e.FrameReceived(sender, to, message, relayed))
            case _:
                self.worker.on(sender, frame)

    # What the worker asks for

    def send(self, key: str, frame: Any) -> None:
        """A frame to another worker, or to this one."""
        if key == self.key:
            self.sim.at(self.sim.now, self.me, ("frame", self.me, False, frame))
        else:
            self.route(key, frame)

    def route(self, key: str, frame: Any) -> None:
        """Directly, and by relays too: those of the moment and those of the configuration."""
        self.sim.transmit(self.key, key, self.me, frame, relayed=False)
        via = self.relays.get(key) if self.sim.has_relays else None
        if via is not None:
            self.sim.transmit(self.key, via, self.me, ("via", key, frame), relayed=False)
        known = self.machine.known
        if known is None or not known.routes or not self.sim.has_relays:
            return
        for route in known.routes:
            members = known.members
            if members[route.sender] == self.me and members[route.receiver].key == key:
                relay = members[route.relay].key
                if relay != via:
                    self.sim.transmit(self.key, relay, self.me, ("via", key, frame), relayed=False)

    def compute(self, identity: Any, step: int, batch: int) -> None:
        """A micro-batch takes a while."""
        seconds = (0.05 + 0.1 * self.sim.chance.random()) * self.sim.slowness[self.key]
        self.sim.at(self.sim.now + seconds, self.me, ("computed", identity, step, batch))

    def checkpoint(self, found: Any) -> None:
        """Written beside the training; what is whole counts."""
        self.sim.write_checkpoint(self, found)

    def proven(self, board: BoardId) -> None:
        """A learner's proof was seen."""
        self.sim.at(self.sim.now, self.me, ("machine", e.Proven(board)))

    def reported(self) -> None:
        """The page has changed."""
        self.sim.at(self.sim.now + 0.001, self.me, ("reported",))

    def note(self, name: str, *values: Any) -> None:
        """For the checks and the counts."""
        self.sim.counts[name] += 1
        if name == "applied":
            self.sim.checks.applied(self, *values)
