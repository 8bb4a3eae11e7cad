"""Histories in which votes, or the states of all boards, are forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consensus_scenes import (
    Table,
    alone,
    epoch_of,
    kind_of,
    knows,
    must,
    progress,
    same_generation,
    starts_at_checkpoint,
)
from consensus_simulator import Simulator

from picoedge.mesh.consensus import events as e
from picoedge.mesh.consensus.configuration import (
    Ballot,
    BoardId,
)

CONSENSUS = ("Accept", "Accepted", "Configured", "Beat", "Suspect", "Prepare")


def forgotten_choice(seed: int) -> None:
    """A and B vote. A chooses (A, B, C, D, E) alone, its disk slow, B cut off; the five go on
    without B; A dies before its write ends, and comes back to hear only B."""
    sim = Simulator(seed, 5, 2, 0)
    alone(sim, "a", "b")
    sim.run(5)
    must(knows(sim, "a") == {"a", "b"}, "the beginning")
    planned: list[int] = []

    def deaf(source: str, key: str, frame: Any) -> bool:
        return not (planned and key == "b" and kind_of(frame) in CONSENSUS)

    def no_proof(source: str, key: str, frame: Any) -> bool:
        return frame[0] != "prove" and deaf(source, key, frame)

    sim.filter = no_proof
    for key in "cde":
        sim.tell(key, e.Join())
    sim.run(20)
    shell = sim.shells["a"]
    sim.disk_slowness["a"] = sim.disk_slowness["b"] = 1000
    planned.append(epoch_of(sim))
    for key in "cde":
        shell.feed(e.Proven(sim.shells[key].me))
    sim.run(3)
    sim.split({"b"})
    sim.run(30)
    sim.reboot("a")
    sim.filter = None
    sim.disk_slowness["a"] = sim.disk_slowness["b"] = 1
    sim.split({"a", "b"})
    sim.run(40)
    sim.heal()
    progress(sim, 60, "forgotten choice")


def late_prepare(seed: int) -> None:
    """Voters X, Y, Z. P2 has promises of X and Y; X restarts; P1 chooses v1 by X' and Z; a copy of
    P2's `Prepare` reaches X', then its `Accept` reaches X' and Y: v2 must not be chosen too."""
    del seed
    x, y, z = boards = tuple(BoardId(key, 1) for key in "xyz")
    again = BoardId("x", 2)
    table = Table(boards)
    one, two = Ballot(1, 0, z), Ballot(2, 0, y)
    v1, v2 = table.value((z,), one), table.value((x, y), two)
    must(table.promises(x, two) and table.promises(y, two), "promises of X and Y")
    table.restart(x, again)
    must(table.promises(again, one) and table.promises(z, one), "promises of X' and Z")
    first = [table.accepts(again, one, v1, (again, z)), table.accepts(z, one, v1, (again, z))]
    must(all(first), "v1 is chosen")
    table.promises(again, two)
    second = [table.accepts(again, two, v2, (x, y)), table.accepts(y, two, v2, (x, y))]
    must(not all(second), "v2 is chosen too")


def late_accept(seed: int) -> None:
    """P1 has promises of X and Y for 1, P2 of Y and Z for 2. Each then asks its own to accept."""
    del seed
    x, y, z = boards = tuple(BoardId(key, 1) for key in "xyz")
    table = Table(boards)
    one, two = Ballot(1, 0, x), Ballot(2, 0, z)
    v1, v2 = table.value((x, y), one), table.value((y, z), two)
    must(table.promises(x, one) and table.promises(y, one), "promises for 1")
    must(table.promises(y, two) and table.promises(z, two), "promises for 2")
    second = [table.accepts(z, two, v2, (y, z))]
    first = [table.accepts(board, one, v1, (x, y)) for board in (x, y)]
    second.append(table.accepts(y, two, v2, (y, z)))
    must(not (all(first) and all(second)), "two are chosen")


def forgotten_refusal(seed: int) -> None:
    """X and Y refuse the first attempt of a planned change, so A makes a second, and Y accepts it.
    X restarts, and a late copy of the first reaches X': it must not be accepted any more.

    Two rules cover for each other: round 0 has votes only of processes that are voters themselves,
    and frames for an earlier process are dropped.
    """
    del seed
    a, x, y = boards = tuple(BoardId(key, 1) for key in "axy")
    again = BoardId("x", 2)
    table = Table(boards)
    one, two = Ballot(0, 1, a), Ballot(0, 2, a)
    v1, v2 = table.value((a, x), one), table.value((a, y), two)
    first = [table.accepts(a, one, v1, ())]
    must(not table.accepts(x, one, v1, (), late=True), "X refuses")
    must(not table.accepts(y, one, v1, (), late=True), "Y refuses")
    second = [table.accepts(board, two, v2, ()) for board in (a, y)]
    must(all(second), "the second attempt is chosen")
    table.restart(x, again)
    first.append(table.accepts(again, one, v1, (), to=1))
    must(not all(first), "two are chosen")


def lone_record(seed: int) -> None:
    """Only A has stored what A and B chose; B dies, A meets C."""
    sim = Simulator(seed, 3, 3, 0)
    sim.run(6)
    sim.disk_slowness["b"] = 1e4
    sim.split({"c"})
    for _ in range(100):
        sim.run(0.2)
        newest = sim.disks["a"].newest()
        if newest and newest[1].vote:
            break
    sim.crash("b")
    sim.run(30)
    sim.disk_slowness["b"] = 1
    sim.boot("b")
    sim.split({"a"})
    sim.run(40)
    sim.heal()
    progress(sim, 60, "lone record")


def unstored(seed: int) -> None:
    """A and B go on without C, their disks stand still; both reboot, and C is back."""
    sim = Simulator(seed, 3, 3, 0)
    sim.run(6)
    for key in sim.keys:
        sim.disk_slowness[key] = 1e4
    sim.split({"c"})
    sim.run(40)
    for key in "ab":
        sim.disks[key].writing.clear()  # not even begun
        sim.reboot(key)
    sim.heal()
    for key in sim.keys:
        sim.disk_slowness[key] = 1
    progress(sim, 60, "unstored")
    same_generation(sim)


def forgotten_vote(seed: int) -> None:
    """A and C choose without B, and say so before C's disk has it; C reboots and meets B."""
    sim = Simulator(seed, 3, 3, 0)
    sim.run(6)
    sim.disk_slowness["a"] = sim.disk_slowness["c"] = 300
    sim.split({"b"})
    sim.run(25)
    sim.pause("a")
    sim.reboot("c")
    sim.disk_slowness["c"] = 1
    sim.heal()
    sim.run(40)
    sim.disk_slowness["a"] = 1
    sim.wake("a")
    progress(sim, 60, "forgotten vote")


def stale_pair(seed: int) -> None:
    """{A, C} | B: A chooses (A, B, C) alone, then A and C choose (A, C) and go on; A reboots while
    C sleeps and B is back: A' and B must not choose a second configuration of that epoch."""
    sim = Simulator(seed, 3, 2, 0)
    sim.run(5)
    sim.split({"b"})
    sim.run(60)
    must(knows(sim, "a") == {"a", "c"}, "A and C did not go on", knows(sim, "a"))
    last = sim.best()
    sim.pause("c")
    sim.reboot("a")
    sim.heal()
    sim.run(40)
    same_generation(sim)
    must(sim.best()[1] <= last[1] + 1, "A and B went on without C", last, sim.best())
    sim.wake("c")
    progress(sim, 60, "after C woke")
    same_generation(sim)


def any_half(seed: int) -> None:
    """Two of four voters on each side: only that with the lowest rank goes on."""
    sim = Simulator(seed, 4, 4, 0)
    sim.run(6)
    sim.split({"c", "d"})
    sim.run(30)
    sim.heal()
    progress(sim, 60, "halves")
    same_generation(sim)


def lone_lowest(seed: int) -> None:
    """B is unplugged, A goes on alone and writes a checkpoint, A reboots, B is back with an old
    state: nothing older than A's checkpoint may win."""
    sim = Simulator(seed, 2, 2, 0)
    sim.run(5)
    sim.split({"b"})
    sim.run(60)
    last = sim.best()
    sim.reboot("a")
    sim.heal()
    progress(sim, 60, "lone lowest")
    starts_at_checkpoint(sim, last[1])


def dead_card(seed: int) -> None:
    """A and C reboot, C never returns, B has the state: it goes on by itself."""
    sim = Simulator(seed, 3, 3, 0)
    sim.run(8)
    sim.reboot("a")
    sim.lose("c")
    progress(sim, 60, "dead card")
    same_generation(sim)


def power_strip(seed: int) -> None:
    """All reboot at a random moment; one may never return, then the owner is asked."""
    sim = Simulator(seed, 4, 3, 1)
    alone(sim, "a", "b", "c")
    sim.run(6 + sim.chance.random() * 20)
    last = sim.best()
    lost = sim.chance.choice((None, "a", "b", "c"))
    for key in sim.keys:
        sim.crash(key)
    if lost:
        sim.gone.add(lost)
    for key in sim.keys:
        sim.run(sim.chance.random() * 4)
        sim.boot(key)
    sim.run(30)
    if sim.best() <= last:
        must(lost, "all are back and nothing runs")
        sim.tell(sim.chance.choice([key for key in "abc" if key != lost]), e.Resume())
        sim.run(30)
    must(sim.best()[0] > last[0], "not resumed", lost, sim.best())
    starts_at_checkpoint(sim, last[1])
    progress(sim, 20, "power strip")


def majority_returns(seed: int) -> None:
    """A and B reboot while C, which has the state, sleeps: they wait for it."""
    sim = Simulator(seed, 3, 3, 0)
    sim.run(12)
    sim.pause("c")
    sim.reboot("a")
    sim.reboot("b")
    sim.run(40)
    same_generation(sim)
    sim.wake("c")
    progress(sim, 60, "after C woke")
    same_generation(sim)


def two_commands(seed: int) -> None:
    """The owner gives the command on both sides of a split: one generation is left."""
    sim = Simulator(seed, 5, 5, 0)
    sim.run(6)
    sim.lose("a")
    for key in sim.keys:
        sim.reboot(key)
    sim.split({"b", "c"})
    sim.run(20)
    sim.tell("b", e.Resume())
    sim.tell("d", e.Resume())
    sim.run(20)
    sim.heal()
    sim.run(30)
    generations = {sim.shells[k].machine.known.epoch.generation for k in "bcde"}  # type: ignore
    must(len(generations) == 1, "generations are left", generations)
    progress(sim, 30, "two commands")


HISTORIES: dict[str, Callable[[int], None]] = {
    history.__name__: history
    for history in (
        forgotten_choice, late_prepare, late_accept, forgotten_refusal, lone_record,
        unstored, forgotten_vote, stale_pair, any_half, lone_lowest, dead_card, power_strip,
        majority_returns, two_commands,
    )
}  # fmt: skip
