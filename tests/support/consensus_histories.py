"""Histories that break weaker designs, each by name: HISTORIES[name](seed) raises AssertionError.

Each was found by a simulator or by reading, and is caught by random seeds rarely or never.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consensus_checks import Violation
from consensus_simulator import BEGINNING, NOBODY, RUN, Shell, Simulator
from consensus_worker import CHECKPOINT_STEPS, SEGMENTS, Worker

from picoedge.mesh.consensus import events as e
from picoedge.mesh.consensus import messages as m
from picoedge.mesh.consensus.configuration import (
    Ballot,
    BoardId,
    Configuration,
    Epoch,
    Identity,
    Role,
    Snapshot,
)
from picoedge.mesh.consensus.machine import Machine
from picoedge.mesh.consensus.record import Record

CONSENSUS = ("Accept", "Accepted", "Configured", "Beat", "Suspect", "Prepare")


def must(true: object, *why: object) -> None:
    """Raises Violation."""
    if not true:
        raise Violation(str(why))


def kind_of(frame: Any) -> str:
    """What a frame is, also one that is relayed."""
    inner = frame[2] if frame[0] == "via" else frame
    return type(inner[2]).__name__ if inner[0] == "control" else str(inner[0])


def progress(sim: Simulator, seconds: float, why: object, steps: int = 5) -> None:
    """The run goes on by itself."""
    before = sim.best()
    sim.run(seconds)
    after = sim.best()
    must(after[0] > before[0] or after[1] >= before[1] + steps, "no progress", why, before, after)


def same_generation(sim: Simulator) -> None:
    """No final step was lost."""
    must(sim.best()[0] == BEGINNING, "a generation was lost", sim.best())


def epoch_of(sim: Simulator) -> int:
    """The number of the newest configuration."""
    newest = sim.newest()
    assert newest is not None
    return newest.epoch.number


def knows(sim: Simulator, key: str) -> set[str]:
    """Members of the configuration that a board knows."""
    known = sim.shells[key].machine.known
    return {member.key for member in known.members} if known else set()


def alone(sim: Simulator, *keys: str) -> None:
    """Only these ask to take part."""
    for key in sim.keys:
        if key not in keys:
            sim.tell(key, e.Leave())


# Votes that are forgotten


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


class Table:
    """Voters that are asked one by one, in an order that no network is needed for."""

    def __init__(self, boards: tuple[BoardId, ...]) -> None:
        self.base = configuration(boards)
        self.instance = self.base.epoch.next
        self.machines = {board: machine(board, self.base) for board in boards}
        self.disks: dict[BoardId, tuple[int, Record]] = {}
        running = e.Report(Snapshot(BEGINNING, 1, None), self.base.identity)
        for one in self.machines.values():
            one.on(e.Reported(running))
            for _ in range(9):  # nothing moves: reason enough to answer
                one.on(e.Tick())

    def value(self, members: tuple[BoardId, ...], ballot: Ballot) -> Configuration:
        """A configuration to be proposed."""
        return configuration(members, epoch=self.instance, ballot=ballot, start=2)

    def restart(self, board: BoardId, again: BoardId) -> None:
        """The next process of a board, with what was stored."""
        stored = self.disks.get(board, (1, Record(self.base)))
        self.machines[again] = machine(again, None, stored)

    def say(
        self, board: BoardId, sender: BoardId, message: m.Message, to: int = 0, late: bool = False
    ) -> list[m.Message]:
        """What a board answers when its worker and its disk have done what they were asked."""
        found = self.machines[board]
        if sender == board:  # from itself
            found.board.to_self.append(message)
            todo = found.on(e.Lost("nobody"))
        else:
            todo = found.on(e.Received(sender, to or board.incarnation, message))
        said: list[m.Message] = []
        while todo:
            match todo.pop(0):
                case e.Send(message=answer):
                    said.append(answer)
                case e.Freeze(epoch=epoch):
                    todo += found.on(e.Frozen(epoch, e.NO_STATE))
                case e.Fence(ballot=ballot, start=start):
                    todo += found.on(e.Fenced(ballot, None if late else start))
                case e.Store(sequence=sequence, record=record):
                    self.disks[board] = sequence, record
                    todo += found.on(e.Stored(sequence))
        return said

    def promises(self, board: BoardId, ballot: Ballot) -> bool:
        """Whether a board promises."""
        asked = m.Prepare(self.instance, ballot, self.base.members)
        self.say(board, ballot.board, asked)
        return self.machines[board].acceptor.promised == ballot

    def accepts(
        self, board: BoardId, ballot: Ballot, value: Configuration, by: tuple[BoardId, ...],
        *, to: int = 0, late: bool = False,
    ) -> bool:  # fmt: skip
        """Whether a board accepts."""
        asked = m.Accept(self.instance, ballot, value, by)
        said = self.say(board, ballot.board, asked, to, late)
        return any(isinstance(answer, m.Accepted) for answer in said)


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


# All restarted


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


def starts_at_checkpoint(sim: Simulator, last: int) -> None:
    """A new generation loses no more than the interval of checkpoints."""
    for configuration in sim.checks.configurations.values():
        if configuration.restores and configuration.epoch.number:
            least = last - CHECKPOINT_STEPS - 4
            must(configuration.start >= least, "steps were lost", configuration.start, last)


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


# Suspicion


def one_way_cut(seed: int) -> None:
    """A does not hear B, all else is fine: training goes on, without a failure."""
    sim = Simulator(seed, 5, 4, 1)
    sim.run(5)
    before = failures(sim)
    sim.cuts = {("b", "a")}
    progress(sim, 60, "one-way cut", 25)
    must(failures(sim) == before, "failures", failures(sim) - before)
    must(any(c.routes for c in sim.checks.configurations.values()), "the relay is not permanent")


def failures(sim: Simulator) -> int:
    """Configurations that were not planned."""
    return sum(c.ballot.round > 0 for c in sim.checks.configurations.values())


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
    """B hears nobody but is heard: it suspects all, and stops nobody for longer than its part."""
    sim = Simulator(seed, 5, 5, 0)
    sim.run(6)
    sim.cuts = {(key, "b") for key in sim.keys}
    sim.run(15)
    after = failures(sim)
    progress(sim, 45, "disruptive", 20)
    must(failures(sim) - after <= 1, "failures", failures(sim) - after)


def false_suspicion(seed: int) -> None:
    """A voter says again and again that all are gone, with ballots: nobody stops for it."""
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


def told(event: Any, kind: type) -> Any:
    """The message of this kind that an event brings to a machine."""
    if event[0] == "frame" and event[3][0] == "control" and isinstance(event[3][2], kind):
        return event[3][2]
    return None


# Proposers


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
    """Everybody proposes, and who accepted what is heard late."""
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


def planned_then_death(seed: int) -> None:
    """A planned change is accepted, then a member dies before its start."""
    for victim in "abc":
        sim = Simulator(seed * 3 + ord(victim), 5, 3, 1)
        done: list[int] = []

        def die(
            shell: Shell, event: Any, sim: Simulator = sim, done: list[int] = done,
            victim: str = victim,
        ) -> None:  # fmt: skip
            if event[0] == "worker" and isinstance(event[1], e.Fence) and not done:
                done.append(1)
                sim.crash(victim)

        sim.hook = die
        sim.run(40)
        must(done, "nothing was planned")
        progress(sim, 40, ("planned, then death", victim))


def own_fence(seed: int) -> None:
    """`Accept` and `Accepted` come late: the proposer alone must hold the step."""
    sim = Simulator(seed, 5, 3, 1)
    for kind in ("Accept", "Accepted"):
        sim.late[kind] = 1e9, 1.5
    for i in range(12):
        sim.tell("d", e.Join() if i % 2 else e.Leave())
        sim.run(5)
    same_generation(sim)
    progress(sim, 20, "own fence")
    must(epoch_of(sim) > 4, "no changes", epoch_of(sim))


def leaver_leads(seed: int) -> None:
    """The lowest rank leaves, and all others want something too: nobody waits."""
    sim = Simulator(seed, 5, 4, 1)
    sim.run(6)
    before = failures(sim)
    for key in "abc":
        sim.tell(key, e.Leave())
        sim.run(10)
    must(failures(sim) == before, "failures", failures(sim) - before)
    progress(sim, 20, "leaver leads", 10)
    same_generation(sim)


# States


def stale_catch_up(seed: int) -> None:
    """After a promise for the next epoch only that epoch's configuration may move the state."""
    del seed
    boards = tuple(BoardId(key, 1) for key in "abc")
    epoch, ballot = Epoch(BEGINNING, 1), Ballot(1, 0, boards[0])
    known = configuration(boards, epoch=epoch, ballot=ballot, start=5)

    class Silent:
        """A shell that does nothing."""

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *args: None

    digests = (0,) * SEGMENTS
    worker = Worker(boards[1], Silent(), (Snapshot(BEGINNING, 0, None), digests), lambda: 0.0)
    worker.known, worker.known_id = known, known.identity
    worker.live, worker.step, worker.digests = True, 4, {4: digests}
    worker.freeze(Epoch(BEGINNING, 2))
    state = worker.report().state
    must(state and state.step == 4, "the promise", state)
    sums = {r: tuple((b, "a") for b in range(6)) for r in range(SEGMENTS)}
    maker = Identity(Epoch(BEGINNING, 0), Ballot(0, 0, NOBODY))
    worker.on(boards[0], ("have", 4, known.identity, maker, sums, None))
    must(worker.step == 4, "moved under an earlier epoch after a promise")


def late_sums(seed: int) -> None:
    """Sums of a suspected board arrive after the promises and before the accept."""
    sim = Simulator(seed, 3, 3, 0)
    sim.run(6)
    held: list[Any] = []
    gone: list[int] = []

    def slow(source: str, key: str, frame: Any) -> bool:
        if source == "a" and not gone:
            if kind_of(frame) in ("part", "sum") and key != source:
                held.append((key, frame))
            return False
        return True

    def release(shell: Shell, event: Any) -> None:
        frozen = [sim.shells[key].worker.frozen for key in "bc"]
        if not gone and all(f is not None and f.number > 0 for f in frozen):
            gone.append(1)
            for key, frame in held:
                sim.transmit_at(0.005, "a", key, sim.shells["a"].me, frame)

    for kind in ("Promise", "Accept"):
        sim.late[kind] = sim.now + 15, 1
    sim.filter, sim.hook = slow, release
    sim.run(15)
    sim.filter = sim.hook = None
    sim.run(20)
    must(gone, "no promise")
    same_generation(sim)
    progress(sim, 30, "late sums")


def ahead(seed: int) -> None:
    """A board completes, outside the quorum, a step that is redone: it pulls the state anew."""
    sim = Simulator(seed, 4, 4, 0)
    sim.run(6 + sim.chance.random())
    cut: list[int] = []

    def only_to_d(source: str, key: str, frame: Any) -> bool:
        if kind_of(frame) == "sum" and not cut:
            return key == "d" or source == key
        return True

    def split(shell: Shell, event: Any) -> None:
        if not cut and sim.shells["d"].worker.step > max(
            sim.shells[key].worker.step for key in "abc"
        ):
            cut.append(1)
            sim.split({"d"})

    sim.filter, sim.hook = only_to_d, split
    sim.run(15)
    must(cut, "nobody was ahead")
    sim.run(20)
    sim.heal()
    progress(sim, 40, "ahead")
    same_generation(sim)
    must("d" in knows(sim, "a") and sim.counts["landed"] > 0, "D did not pull the state anew")


def superseded(seed: int) -> None:
    """A step before a planned start is redone, because a failure came between: what is final is
    what the next step was built upon, not what lies before some epoch's start."""
    cuts = 0
    for j in range(4):
        sim = Simulator(4 * seed + j, 5, 4, 0)
        sim.run(6)
        done: list[int] = []

        def cut(shell: Shell, event: Any, sim: Simulator = sim, done: list[int] = done) -> None:
            known = shell.machine.known
            waits = known and known.ballot.round == 0 and shell.worker.live
            if waits and known and shell.worker.step < known.start and not done:
                done.append(1)
                sim.split({shell.key})

        sim.hook = cut
        sim.tell("d", e.Leave())
        sim.run(25)
        sim.hook = None
        sim.heal()
        cuts += len(done)
        progress(sim, 40, "superseded")
        same_generation(sim)
    must(cuts, "nothing was planned")


def landed_source(seed: int) -> None:
    """Only a board that has just landed is at the start, without the sum that leads there."""
    for j in range(4):
        sim = Simulator(4 * seed + j, 4, 3, 0)
        state: dict[str, bool] = {}

        def lost(source: str, key: str, frame: Any, state: dict[str, bool] = state) -> bool:
            mid = "planned" in state and "died" not in state
            return not (mid and key in "bc" and kind_of(frame) in ("sum", "have"))

        def watch(
            shell: Shell, event: Any, sim: Simulator = sim, state: dict[str, bool] = state
        ) -> None:
            plan = sim.shells["a"].machine.planner.plan
            if plan and "d" in {member.key for member in plan.members}:
                state["planned"] = True
            landed = sim.shells["d"].worker
            if "died" not in state and landed.live and "a" not in sim.dead:
                landed.last = {}  # by shards alone: it never heard the last sum
                state["died"] = True
                sim.lose("a")

        sim.filter, sim.hook = lost, watch
        sim.run(40)
        sim.filter = sim.hook = None
        if "died" in state:
            progress(sim, 60, "landed source")
            same_generation(sim)


def learner_through_ten(seed: int) -> None:
    """A learner survives ten changes, then is counted in."""
    sim = Simulator(seed, 7, 3, 2)
    alone(sim, "a", "b", "c", "d")
    seen: set[Epoch] = set()

    def no_proof(source: str, key: str, frame: Any) -> bool:
        return not (key == "d" and frame[0] == "digested" and len(seen) < 10)

    def watch(shell: Shell, event: Any) -> None:
        known = shell.machine.known
        if known and "d" in {learner.key for learner in known.learners}:
            seen.add(known.epoch)

    sim.filter, sim.hook = no_proof, watch
    for i in range(60):
        sim.run(4)
        if len(seen) >= 10:
            break
        if i % 3 == 2:
            sim.boot("c") if "c" in sim.dead else sim.crash("c")
        sim.tell("e", e.Join() if i % 2 else e.Leave())
    must(len(seen) >= 10, "ten changes", len(seen))
    sim.boot("c")
    sim.run(40)
    must(any("d" in knows(sim, key) for key in "ab"), "not counted in", knows(sim, "a"))
    progress(sim, 20, "learner")


def lone_trainer(seed: int) -> None:
    """Where one trainer is left, a witness holds a second copy of its state, and trains never."""
    sim = Simulator(seed, 3, 2, 1)
    sim.run(6)
    sim.lose("b")
    progress(sim, 60, "lone trainer")
    newest = sim.newest()
    must(newest and {b.key for b in newest.learners} == {"c"}, "no copy", newest)
    must(sim.shells["c"].worker.proof, "the copy is not proven")


def witness_exchanged(seed: int) -> None:
    """A witness that falls silent is exchanged, and nobody stops for it."""
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


# The reduction


def hand_over(seed: int) -> None:
    """A slow board hands micro-batches over."""
    sim = Simulator(seed, 3, 3, 0)
    sim.slowness["b"] = 8
    progress(sim, 50, "hand-over", 15)
    must(sim.counts["handed"] > 5, "no hand-over")


def lost_acknowledgement(seed: int) -> None:
    """The acknowledgement of a hand-over is lost: the micro-batch is in the sum once."""
    sim = Simulator(seed, 3, 3, 0)
    sim.slowness["b"] = 8
    lost: list[int] = []

    def deaf(source: str, key: str, frame: Any) -> bool:
        if kind_of(frame) == "take":
            lost.append(1)
            return False
        return True

    sim.filter = deaf
    progress(sim, 60, "lost acknowledgement", 12)
    must(len(lost) > 3, "no hand-over", len(lost))


# What histories are made of


def configuration(
    members: tuple[BoardId, ...], *, epoch: Epoch | None = None, ballot: Ballot | None = None,
    start: int = 0,
) -> Configuration:  # fmt: skip
    """A configuration of these members alone."""
    n = len(members)
    return Configuration(
        RUN, epoch or Epoch(BEGINNING, 0), ballot or Ballot(0, 0, NOBODY), members, members, (),
        start, members[0], (0,) * n, (1,) * n,
        tuple(SEGMENTS // n + (i < SEGMENTS % n) for i in range(n)),
    )  # fmt: skip


def machine(
    me: BoardId, first: Configuration | None, record: tuple[int, Record] | None = None
) -> Machine:
    """A machine that has begun."""
    found = Machine(me, Role.TRAINER, RUN, SEGMENTS, first=first, record=record)
    found.start()
    return found


HISTORIES: dict[str, Callable[[int], None]] = {
    history.__name__: history
    for history in (
        forgotten_choice, late_prepare, late_accept, forgotten_refusal, lone_record, unstored,
        forgotten_vote, stale_pair, any_half,
        lone_lowest, dead_card, power_strip, majority_returns, two_commands, one_way_cut, cut_link,
        disruptive, false_suspicion, paused, revoke_in_recovery, two_proposers, all_propose,
        proposer_dies, accepted_alone, planned_then_death, own_fence, leaver_leads, stale_catch_up,
        late_sums, ahead, superseded, landed_source, learner_through_ten, lone_trainer,
        witness_exchanged, hand_over, lost_acknowledgement,
    )
}  # fmt: skip
