"""Histories of suspicion, relays, witnesses and several proposers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consensus_board import Shell
from consensus_scenes import (
    alone,
    epoch_of,
    failures,
    kind_of,
    must,
    progress,
    same_generation,
    told,
)
from consensus_simulator import Simulator

from picoedge.mesh.consensus import events as e
from picoedge.mesh.consensus import messages as m
from picoedge.mesh.consensus.configuration import (
    Ballot,
)


def one_way_cut(seed: int) -> None:
    """A does not hear B, all else is fine: training goes on, without a failure."""
    sim = Simulator(seed, 5, 4, 1)
    sim.run(5)
    before = failures(sim)
    sim.cuts = {("b", "a")}
    progress(sim, 60, "one-way cut", 25)
    must(failures(sim) == before, "failures", failures(sim) - before)
    must(any(c.routes for c in sim.checks.configurations.values()), "the relay is not permanent")


def cut_link(seed: int) -> None:
    """Neither of two boards hears the other."""
    sim = Simulator(seed, 5, 4, 1)
    sim.run(5)
    before = failures(sim)
    sim.cuts = {("b", "a"), ("a", "b")}
    progress(sim, 60, "cut link", 25)
    must(failures(sim) == before, "failures", failures(sim) - before)
    sim.heal()
    sim.run(40)
    newest = sim.newest()
    must(newest and not newest.routes, "the relay is still there")


def disruptive(seed: int) -> None:
    """B hears no board but is heard: it suspects all, and stops none for longer than its part."""
    sim = Simulator(seed, 5, 5, 0)
    sim.run(6)
    sim.cuts = {(key, "b") for key in sim.keys}
    sim.run(15)
    after = failures(sim)
    progress(sim, 45, "disruptive", 20)
    must(failures(sim) - after <= 1, "failures", failures(sim) - after)


def false_suspicion(seed: int) -> None:
    """A voter says again and again that all are gone, with ballots: no board stops for it."""
    sim = Simulator(seed, 4, 4, 0)
    sim.run(6)
    before, newest = failures(sim), sim.newest()
    assert newest is not None
    liar = sim.shells["c"].me
    for i in range(40):
        instance = sim.newest().epoch.next  # type: ignore[union-attr]
        for key in "abd":
            lies = (
                m.Prepare(instance, Ballot(i + 1, 0, liar), ()),
                m.Suspect(instance, newest.members, True),
            )
            for message in lies:
                sim.transmit_at(0.01, "c", key, liar, ("control", 1, message))
        sim.run(1)
    must(failures(sim) == before, "failures", failures(sim) - before)
    must(sim.best()[1] > 40, "it was slowed", sim.best())


def paused(seed: int) -> None:
    """A stopped board wakes: it does not suspect everybody for its own silence."""
    sim = Simulator(seed, 5, 4, 1)
    sim.run(5)
    before = failures(sim)
    sim.pause("c")
    sim.run(15)
    sim.wake("c")
    progress(sim, 45, "paused", 25)
    must(failures(sim) - before <= 2, "failures", failures(sim) - before)


def revoke_in_recovery(seed: int) -> None:
    """A key is revoked while a failure of another is settled."""
    for first in (3, 4):
        sim = Simulator(seed, 5, first, 1)
        alone(sim, *"abcd"[:first])
        sim.run(6)
        done: list[int] = []

        def revoke(shell: Shell, event: Any, sim: Simulator = sim, done: list[int] = done) -> None:
            if told(event, m.Prepare) and not done:
                done.append(1)
                sim.revoke("b")

        sim.hook = revoke
        sim.lose("abcd"[first - 1])
        sim.run(40)
        must(done, "no recovery")
        if not sim.goes_on():
            sim.tell("a", e.Resume())
        progress(sim, 40, ("revoke in recovery", first))


def two_proposers(seed: int) -> None:
    """Two boards propose at once."""
    sim = Simulator(seed, 5, 5, 0)
    sim.run(6 + sim.chance.random())
    sim.lose("e")
    sim.run(3.5)
    for key in "bd":
        recovery = sim.shells[key].machine.recovery
        recovery._begin()
        sim.shells[key].carry_out(sim.shells[key].machine.on(e.Lost("e")))
    progress(sim, 40, "two proposers")
    same_generation(sim)


def all_propose(seed: int) -> None:
    """All boards propose, and acceptances are heard late."""
    for i in range(6):
        sim = Simulator(6 * seed + i, 3, 3, 0)
        sim.run(6)
        for key in sim.keys:
            sim.reboot(key)
        sim.run(1.6)
        for kind in ("Accepted", "Beat"):
            sim.late[kind] = sim.now + 4, 4
        for key in sim.keys:
            shell = sim.shells[key]
            if shell.machine.board.has_seat():
                shell.machine.recovery._begin()
            shell.carry_out(shell.machine.on(e.Lost("z")))
        sim.run(4)
        progress(sim, 50, ("all propose", i))


def proposer_dies(seed: int) -> None:
    """A proposer dies between its first `Accept` and the majority."""
    for j in range(3):
        sim = Simulator(3 * seed + j, 5, 5, 0)
        done: list[int] = []

        def die(
            shell: Shell, event: Any, sim: Simulator = sim, done: list[int] = done, j: int = j
        ) -> None:
            accept = told(event, m.Accept)
            if accept and accept.ballot.round > 0 and len(done) <= j:
                done.append(1)
                if len(done) == j + 1:
                    sim.crash(accept.ballot.board.key)

        sim.run(6)
        sim.hook = die
        sim.lose("e")
        sim.run(30)
        must(done, "no accept")
        progress(sim, 40, "proposer died")
        same_generation(sim)


def accepted_alone(seed: int) -> None:
    """A quorum accepts and only one board learns it, which then falls silent: the others must
    choose the same again."""
    sim = Simulator(seed, 3, 3, 0)
    sim.run(6)
    chosen: list[Any] = []

    def only_to_a(source: str, key: str, frame: Any) -> bool:
        return key == "a" or source == key or kind_of(frame) not in ("Accepted", "Configured")

    def stop(shell: Shell, event: Any) -> None:
        known = shell.machine.known
        if shell.key == "a" and known and known.epoch.number > before and not chosen:
            chosen.append(known)
            sim.pause("a")

    before = epoch_of(sim)
    sim.filter, sim.hook = only_to_a, stop
    sim.lose("c")
    sim.run(30)
    must(chosen, "nothing was chosen")
    sim.gone.discard("c")
    sim.boot("c")
    sim.filter = None
    sim.run(30)
    sim.wake("a")
    progress(sim, 60, "accepted alone")


def witness_exchanged(seed: int) -> None:
    """A witness that falls silent is exchanged, and no board stops for it."""
    sim = Simulator(seed, 6, 4, 2)
    sim.run(8)
    newest = sim.newest()
    assert newest is not None
    before = failures(sim)
    witness = next(voter.key for voter in newest.voters if voter.key in sim.witnesses)
    sim.crash(witness)
    progress(sim, 30, "witness", 15)
    must(failures(sim) == before, "a failure", failures(sim))
    newest = sim.newest()
    must(newest and witness not in {voter.key for voter in newest.voters}, "not exchanged", newest)


def lone_trainer(seed: int) -> None:
    """Where one trainer is left, a witness holds a second copy of its state, and trains never."""
    sim = Simulator(seed, 3, 2, 1)
    sim.run(6)
    sim.lose("b")
    progress(sim, 60, "lone trainer")
    newest = sim.newest()
    must(newest and {b.key for b in newest.learners} == {"c"}, "no copy", newest)
    must(sim.shells["c"].worker.proof, "the copy is not proven")


HISTORIES: dict[str, Callable[[int], None]] = {
    history.__name__: history
    for history in (
        one_way_cut, cut_link, disruptive, false_suspicion, paused, revoke_in_recovery,
        two_proposers, all_propose, proposer_dies, accepted_alone, witness_exchanged,
        lone_trainer,
    )
}  # fmt: skip
