"""Random histories of a cluster; any board may fail at any time.

python consensus_seeds.py FIRST LAST [--json]
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable

from consensus_checks import Violation
from consensus_simulator import Simulator

from picoedge.mesh.consensus import events as e
from picoedge.mesh.consensus import messages as m
from picoedge.mesh.consensus.configuration import Ballot, BoardId, Role

FAULTY_S = 50.0
MOMENTS = ("Prepare", "Promise", "Accept", "Accepted", "Configured", "Store", "Adopt", "Fence")
ENOUGH = 4  # steps that must follow when the faults are over


def make(seed: int) -> Simulator:
    """A cluster of 3 to 7 boards, 1 to 4 of which begin the run."""
    chance = random.Random(f"shape {seed}")
    n = chance.randint(3, 7)
    witnesses = chance.randint(0, min(2, n - 2))
    return Simulator(seed, n, chance.randint(1, min(4, n - witnesses)), witnesses)


class Faults:
    """One fault after the other; any board may fail, also all at once."""

    def __init__(self, sim: Simulator) -> None:
        self.sim, self.chance = sim, sim.chance
        self.pace = self.chance.choice((0.5, 2.0, 6.0))  # seconds between two, on average: half
        # Boards that never come back, revoked ones among them: any, if one is left to train.
        self.losable = min(3, len(sim.keys) - len(sim.witnesses) - 1)

        self.kinds = [(n, make) for n, make in self.all_kinds() if self.keeps(make)]

    def all_kinds(self) -> list[tuple[int, Callable[[str], None]]]:
        """Each kind of fault with its weight."""
        return [
            (12, self.crash), (3, self.crash_many), (2, self.blackout), (3, self.reboot_all),
            (20, self.boot), (6, self.pause), (8, self.wake), (6, self.split), (4, self.cut),
            (14, self.heal), (4, self.slow), (8, self.leave), (8, self.join), (1, self.lose),
            (1, self.revoke), (2, self.resume), (3, self.lie), (3, self.replay), (2, self.weigh),
            (14, self.ambush), (6, self.late),
        ]  # fmt: skip

    def keeps(self, make: Callable[[str], None]) -> bool:
        """Swarm testing: a seed has about half of the kinds, as kinds hide each other's effects."""
        return self.chance.random() < 0.55 or make in (self.boot, self.wake, self.heal)

    def __call__(self) -> float:
        """Make a fault; returns the seconds until the next."""
        sim, chance = self.sim, self.chance
        key = chance.choice(sim.keys)
        weights = [weight for weight, _ in self.kinds]
        fault = chance.choices([make for _, make in self.kinds], weights)[0]
        sim.counts[fault.__name__] += 1
        fault(key)
        return 0.1 + chance.random() * self.pace

    def some(self, least: int = 1) -> list[str]:
        """A few boards."""
        return self.chance.sample(self.sim.keys, self.chance.randint(least, len(self.sim.keys)))

    def crash(self, key: str) -> None:
        self.sim.crash(key)

    def crash_many(self, key: str) -> None:
        for one in self.some(2):
            self.sim.crash(one)

    def blackout(self, key: str) -> None:
        for one in self.sim.keys:
            self.sim.crash(one)

    def reboot_all(self, key: str) -> None:
        for one in self.sim.keys:
            self.sim.reboot(one)

    def boot(self, key: str) -> None:
        for one in self.some():
            self.sim.boot(one)

    def pause(self, key: str) -> None:
        self.sim.pause(key)

    def wake(self, key: str) -> None:
        for one in list(self.sim.paused):
            self.sim.wake(one)

    def split(self, key: str) -> None:
        self.sim.split(set(self.some()))

    def cut(self, key: str) -> None:
        self.sim.cut(key, self.chance.choice(self.sim.keys))

    def heal(self, key: str) -> None:
        self.sim.heal()

    def slow(self, key: str) -> None:
        self.sim.disk_slowness[key] = self.chance.choice((1, 1, 8, 30, 1e4))  # or full
        self.sim.slowness[key] = self.chance.choice((1, 1, 3, 6))

    def leave(self, key: str) -> None:
        self.sim.tell(key, e.Leave())

    def join(self, key: str) -> None:
        self.sim.tell(key, e.Join())

    def lose(self, key: str) -> None:
        if len(self.sim.gone | self.sim.revoked) < self.losable:
            self.sim.lose(key)

    def revoke(self, key: str) -> None:
        if len(self.sim.gone | self.sim.revoked) < self.losable:
            self.sim.revoke(key)

    def weigh(self, key: str) -> None:
        weights = tuple((one, self.chance.randint(1, 4)) for one in self.sim.keys)
        self.sim.tell(key, e.Weighted(weights))

    def resume(self, key: str) -> None:
        """The owner, where the run needs one; at times on two boards at once."""
        if not self.sim.goes_on():
            for one in self.some()[:2]:
                self.sim.tell(one, e.Resume())

    def ambush(self, key: str) -> None:
        """The board that does a certain thing next is struck at that moment, or all others are."""
        sim, chance = self.sim, self.chance
        deeds = (
            lambda shell, effect: sim.crash(shell.key),
            lambda shell, effect: sim.reboot(shell.key),
            lambda shell, effect: sim.crash(getattr(effect, "key", key)),
            lambda shell, effect: sim.reboot(getattr(effect, "key", key)),
            lambda shell, effect: sim.split({shell.key}),
            lambda shell, effect: sim.cut(shell.key, getattr(effect, "key", key)),
            lambda shell, effect: sim.pause(shell.key),
            lambda shell, effect: sim.disk_slowness.update({shell.key: 30}),
            lambda shell, effect: [sim.reboot(one) for one in sim.keys],
        )
        sim.ambush = chance.choice(MOMENTS), chance.choice(deeds)

    def late(self, key: str) -> None:
        """Frames of one kind take seconds for a while."""
        kind = self.chance.choice((*MOMENTS, "sum", "part", "have", "take"))
        self.sim.late[kind] = self.sim.now + 5 * self.chance.random(), 3 * self.chance.random()

    def replay(self, key: str) -> None:
        """A frame of long ago, once more."""
        if self.sim.past:
            to, sender, frame = self.chance.choice(self.sim.past)
            self.sim.transmit_at(0.01, sender.key, to, sender, frame)

    def lie(self, key: str) -> None:
        """A board says what is not so: as a voter a false suspicion, else whatever it likes."""
        newest = self.sim.newest()
        if newest is None or key in self.sim.dead:
            return
        liar = BoardId(key, self.sim.incarnations[key])
        instance, ballot = newest.epoch.next, Ballot(9, 0, liar)
        if key in {voter.key for voter in newest.voters}:
            lies: list[m.ConsensusMessage] = [
                m.Suspect(instance, newest.members, True),
                m.Unheard(self.chance.choice(self.sim.keys)),
            ]
        else:
            vote = m.Vote(ballot, newest)
            lies = [
                m.Suspect(instance, newest.members, True), m.Agree(instance),
                m.Prepare(instance, ballot, newest.members), m.Refused(instance, ballot),
                m.Promise(instance, ballot, Role.TRAINER, None, vote, None),
                m.Accept(instance, ballot, newest, newest.voters),
                m.Accepted(instance, ballot, newest),
            ]  # fmt: skip
        for to in self.sim.keys:
            frame = ("control", self.sim.incarnations[to], self.chance.choice(lies))
            if to != key:
                self.sim.transmit_at(0.01, key, to, liar, frame)


def calm(sim: Simulator) -> None:
    """The faults end: everything that can be is up, linked and willing."""
    sim.heal()
    sim.ambush = None
    sim.late.clear()
    for key in sim.keys:
        sim.slowness[key] = sim.disk_slowness[key] = 1.0
        if key in sim.paused:
            sim.wake(key)
        sim.boot(key)
    for key in sim.keys:
        sim.tell(key, e.Join())


def has_moved(sim: Simulator, since: tuple[object, int]) -> bool:
    """Whether enough steps were made since."""
    generation, step = sim.best()
    return generation > since[0] or step >= since[1] + ENOUGH  # type: ignore[operator]


def progresses(sim: Simulator) -> bool:
    """Whether the run goes on, by itself where it can, by the owner's command where not."""
    before = sim.best()
    if sim.newest() is None:  # a run that died with its only board before another heard of it
        sim.counts["unheard_of"] += 1
        return True
    for _ in range(12):
        sim.run(10)
        if has_moved(sim, before):
            return True
        if not sim.goes_on() and sim.up():
            sim.tell(sim.chance.choice(sim.up()), e.Resume())
    return False


def history(seed: int, sim: Simulator | None = None) -> Simulator:
    """One random history. Raises Violation where it ends badly."""
    sim = sim or make(seed)
    sim.run(FAULTY_S, Faults(sim))
    calm(sim)
    if not progresses(sim):
        raise Violation(f"a stall at {sim.best()}; goes on by itself: {sim.goes_on()}")
    sim.counts["steps"] = sum(sim.checks.top.values())
    sim.counts["configurations"] = len(sim.checks.configurations)
    return sim


def main(argv: list[str]) -> int:
    """The seeds from FIRST up to LAST; prints what failed and what was counted."""
    first, last = int(argv[0]), int(argv[1])
    began, total, failed = time.process_time(), Counter[str](), {}
    for seed in range(first, last):
        try:
            total += history(seed).counts
        except Violation as error:
            failed[seed] = str(error)
            print(seed, str(error)[:600], file=sys.stderr, flush=True)
    told = {
        "seeds": last - first, "failed": sorted(failed), "counts": dict(sorted(total.items())),
        "cpu_s": round(time.process_time() - began, 1),
    }  # fmt: skip
    print(json.dumps(told) if "--json" in argv else told)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
