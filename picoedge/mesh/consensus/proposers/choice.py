"""Choice of the configuration to propose, from the promises of a quorum: a pure function.

If a promise holds a configuration that was accepted, that of the highest ballot is proposed again
(Paxos). Else no configuration of this epoch can have been chosen, and one is made. With the members
the outcome of the running step is decided: it is *done* if any board of the quorum has its whole
sum, else it is *redone*. As a part of step s + 1 proves that its sender has s, no two members are
more than a step apart: those one short fetch one sum.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from picoedge.mesh.consensus import topology
from picoedge.mesh.consensus.configuration import (
    MAX_MEMBERS,
    NOBODY,
    Ballot,
    BoardId,
    Configuration,
    Epoch,
    Role,
    RunGeneration,
    Snapshot,
    keys_of,
)
from picoedge.mesh.consensus.messages import Standing, Vote

Order = tuple[RunGeneration, int, bool, object]


@dataclass(frozen=True, slots=True)
class VoterAnswer:
    """The promise of one voter, without what is the same for all of a ballot."""

    board: BoardId
    role: Role
    standing: Standing | None
    vote: Vote | None
    checkpoint: Snapshot | None


@dataclass(frozen=True, slots=True)
class View:
    """The proposer's own facts, beside the answers."""

    known: Configuration
    electorate: Callable[[tuple[BoardId, ...]], tuple[BoardId, ...]]
    uplink: Callable[[BoardId], int]
    is_gone: Callable[[BoardId], bool]
    segments: int


def successor(view: View, ballot: Ballot, answers: Collection[VoterAnswer]) -> Configuration | None:
    """The configuration to propose; None where no state or checkpoint may be continued from."""
    adopted = accepted(answers)
    if adopted is not None:
        return adopted
    standings = {a.board: a.standing for a in answers if a.standing is not None}
    members = {m: standings[m] for m in view.known.members if m in standings}
    if members:
        return _continued(view, ballot, answers, members)
    return _restored(view, ballot, answers)


def accepted(answers: Collection[VoterAnswer]) -> Configuration | None:
    """The configuration accepted in the highest ballot: another may have been chosen already."""
    votes = [a.vote for a in answers if a.vote is not None]
    return max(votes, key=lambda vote: vote.ballot).configuration if votes else None


def source_of(start: int, members: Mapping[BoardId, Standing]) -> tuple[BoardId, bool]:
    """The member to fetch the sum that leads to `start` from, and whether it holds that sum.

    A board that has landed by shards alone is at the start without it; a source that has nothing to
    give leaves those one step short waiting for ever.
    """
    there = [m for m, at in members.items() if at.state.step == start]
    holding = [m for m in there if members[m].holds_sum]
    return (holding or there)[0], bool(holding)


def _continued(
    view: View,
    ballot: Ballot,
    answers: Collection[VoterAnswer],
    standings: Mapping[BoardId, Standing],
) -> Configuration:
    """Go on from the highest state of the members that answered."""
    start = max(at.state.step for at in standings.values())
    source, holds = source_of(start, standings)
    least = start - 1 if holds else start
    members = trainers(standings, least)
    learners = {a.board for a in answers if a.role is Role.TRAINER}
    learners |= {b for b in view.known.learners if not view.is_gone(b)}
    return _made(
        view, ballot, members, start, source, learners, view.known.epoch.next,
        holdings=_holdings(start, members, standings),
    )  # fmt: skip


def trainers(standings: Mapping[BoardId, Standing], least: int) -> tuple[BoardId, ...]:
    """Boards with a state of step `least` or later. A board without one cannot make a step."""
    return tuple(m for m, at in standings.items() if at.state.step >= least)


def _holdings(
    start: int, members: tuple[BoardId, ...], standings: Mapping[BoardId, Standing]
) -> tuple[int, ...]:
    """Micro-batches of the start that are finished; each counts for the lowest rank that has it."""
    taken, found = 0, []
    for member in members:
        at = standings[member]
        own = at.finished & ~taken if at.state.step == start else 0
        taken |= own
        found.append(own)
    return tuple(found)


def _restored(view: View, ballot: Ballot, answers: Collection[VoterAnswer]) -> Configuration | None:
    """A new generation from the newest checkpoint of the voters, when no member has the state.

    Only when *all* voters are there: a missing one may be asleep with a newer state, which the run
    would lose.
    """
    if not all_present(view.known.voters, {a.board.key for a in answers}):
        return None
    trainers_ = [a for a in answers if a.checkpoint and a.role is Role.TRAINER]
    snapshots = {a.board: a.checkpoint for a in trainers_ if a.checkpoint}
    if not snapshots:
        return None
    best = max(snapshots.values(), key=order_of)
    members = tuple(sorted(board for board, found in snapshots.items() if found == best))
    epoch = view.known.epoch
    generation = RunGeneration(epoch.generation.number + 1, NOBODY)
    learners = {a.board for a in answers if a.role is Role.TRAINER}
    return _made(
        view, ballot, members, best.step, members[0], learners,
        Epoch(generation, epoch.number + 1), restores=best,
    )  # fmt: skip


def all_present(voters: Collection[BoardId], keys: Collection[str]) -> bool:
    """Whether every voter has answered, by key."""
    return keys_of(voters) <= set(keys)


def order_of(snapshot: Snapshot) -> Order:
    """Newest last: by generation, then step."""
    made_by = snapshot.made_by
    return snapshot.generation, snapshot.step, made_by is not None, made_by or ()


def resumed(
    view: View, generation: RunGeneration, ballot: Ballot, latest: Mapping[BoardId, Snapshot],
    learners: Collection[BoardId],
) -> Configuration:  # fmt: skip
    """A new generation by the owner's command, from the newest state or checkpoint there is."""
    best = max(latest.values(), key=order_of)
    members = tuple(sorted(board for board, found in latest.items() if found == best))
    epoch = Epoch(generation, view.known.epoch.number + 1)
    return _made(view, ballot, members, best.step, members[0], learners, epoch, restores=best)


def _made(
    view: View, ballot: Ballot, members: tuple[BoardId, ...], start: int, source: BoardId,
    learners: Collection[BoardId], epoch: Epoch, *, holdings: tuple[int, ...] = (),
    restores: Snapshot | None = None,
) -> Configuration:  # fmt: skip
    known, uplinks = view.known, [view.uplink(member) for member in members]
    weights = dict(zip(known.members, known.weights, strict=True))
    return Configuration(
        run=known.run,
        epoch=epoch,
        ballot=ballot,
        members=members,
        voters=view.electorate(members),
        learners=tuple(sorted(set(learners) - set(members)))[:MAX_MEMBERS],
        start=start,
        source=source,
        holdings=holdings or (0,) * len(members),
        weights=tuple(weights.get(member, 1) for member in members),
        shares=topology.shares(uplinks, view.segments),
        restores=restores,
    )
