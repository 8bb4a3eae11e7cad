"""Duties of a board's worker under a configuration: pure functions of the worker's state."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from picoedge.mesh.consensus.configuration import (
    BoardId,
    Configuration,
    ConfigurationId,
    Epoch,
    Snapshot,
)


class Duty(Enum):
    """Work of a worker until it is told of another configuration."""

    RUN = "make the sums of the known configuration from the state there is"
    FINISH = "go on with the configuration it runs, up to the start of the known one"
    FETCH = "ask the source for the one sum that leads to the start"
    RESTORE = "load the checkpoint that the generation begins from"
    WAIT = "a promise for a later epoch holds the state: nothing moves before that is chosen"
    LEARN = "no state that counts: pull one, if it is to take part"


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's progress: its state (None: none that counts), what it runs, its freeze."""

    state: Snapshot | None
    running: Configuration | None
    frozen: Epoch | None
    checkpoint: Snapshot | None = None


def is_frozen(place: Place, epoch: Epoch) -> bool:
    """Whether a promise keeps sums of a configuration of `epoch` from moving the state.

    Frozen boards report a step that stays true until the next configuration is chosen. Without it a
    sum that comes late completes a step which the promises said to redo: two histories.
    """
    return place.frozen is not None and epoch < place.frozen


def duty(known: Configuration, me: BoardId, place: Place) -> Duty:
    """The duty of board `me` under the newest configuration it knows to be chosen.

    A board that is ahead of the start has completed, outside the quorum, a step that is redone: its
    state counts no longer. Nor does that of a board further back than one step: the sums it lacks
    need not be kept by any board.
    """
    running, state = place.running, place.state
    if me not in known.members:
        return Duty.FINISH if _leaves(known, place) else Duty.LEARN
    if running is not None and running.identity == known.identity:
        return Duty.RUN if state is not None else Duty.LEARN
    if state is not None and is_frozen(place, known.epoch):
        return Duty.WAIT
    if state is None or (known.restores and state != known.restores):
        return Duty.RESTORE if _restores(known, place) else Duty.LEARN
    if state.step == known.start:
        return Duty.RUN
    if state.step > known.start:
        return Duty.LEARN
    if running is not None and not is_frozen(place, running.epoch):
        return Duty.FINISH
    return Duty.FETCH if state.step == known.start - 1 else Duty.LEARN


def _leaves(known: Configuration, place: Place) -> bool:
    """Whether the planned change right after what it runs leaves it out, at a step to come.

    Without this a leave stops the others: they wait for its part of the step that is under way.
    """
    running, state = place.running, place.state
    if running is None or state is None or known.ballot.round > 0:
        return False
    due = running.epoch.next == known.epoch and state.step < known.start
    return due and not is_frozen(place, running.epoch)


def _restores(known: Configuration, place: Place) -> bool:
    return known.restores is not None and known.restores == place.checkpoint


def may_move(known: Configuration, place: Place) -> bool:
    """Whether a whole sum of the running configuration may move the state by a step.

    Not beyond the start of the known one, which runs from there.
    """
    running, state = place.running, place.state
    if running is None or state is None or is_frozen(place, running.epoch):
        return False
    return running.identity == known.identity or state.step < known.start


def may_catch_up(known: Configuration, me: BoardId, place: Place, asked: ConfigurationId) -> bool:
    """Whether the sum that the source of `asked` has sent may move the state to the start.

    After a promise for a later epoch only that epoch's configuration may move the state. Without
    this a sum asked for under the earlier one comes late, and the promise was untrue. A member that
    finishes may ask as well: the board that owed it the last sum may have left, or gone on.
    """
    if asked != known.identity:
        return False
    state = place.state
    one_short = state is not None and state.step == known.start - 1
    return one_short and duty(known, me, place) in (Duty.FETCH, Duty.FINISH)
