"""Histories of planned changes, late sums, learners and hand-over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consensus_board import BEGINNING, NOBODY, Shell
from consensus_scenes import (
    alone,
    configuration,
    epoch_of,
    failures,
    kind_of,
    knows,
    must,
    progress,
    same_generation,
)
from consensus_simulator import Simulator
from consensus_step import SEGMENTS
from consensus_worker import Worker

from picoedge.mesh.consensus import events as e
from picoedge.mesh.consensus.configuration import (
    Ballot,
    BoardId,
    ConfigurationId,
    Epoch,
    Snapshot,
)


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
    """A and B; A is a quorum alone, its disk is slow, and B hears `Accept` late: A alone must hold
    the step, or both are past the start when the change is chosen."""
    sim = Simulator(seed, 3, 2, 0)
    alone(sim, "a", "b")
    sim.disk_slowness["a"] = 8
    sim.late["Accept"] = 1e9, 3
    for i in range(8):
        sim.tell("c", e.Leave() if i % 2 else e.Join())
        sim.run(6)
    same_generation(sim)
    must(failures(sim) == 0, "failures", failures(sim))
    progress(sim, 30, "own fence")
    must(epoch_of(sim) > 4, "no changes", epoch_of(sim))


def leaver_leads(seed: int) -> None:
    """The lowest rank leaves, and all others want something too: no board waits."""
    sim = Simulator(seed, 5, 4, 1)
    sim.run(6)
    before = failures(sim)
    for key in "abc":
        sim.tell(key, e.Leave())
        sim.run(10)
    must(failures(sim) == before, "failures", failures(sim) - before)
    progress(sim, 20, "leaver leads", 10)
    same_generation(sim)


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
    maker = ConfigurationId(Epoch(BEGINNING, 0), Ballot(0, 0, NOBODY))
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


HISTORIES: dict[str, Callable[[int], None]] = {
    history.__name__: history
    for history in (
        planned_then_death, own_fence, leaver_leads, stale_catch_up, late_sums, ahead,
        superseded, landed_source, learner_through_ten, hand_over, lost_acknowledgement,
    )
}  # fmt: skip
