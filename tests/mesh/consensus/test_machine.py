"""Frames that must change nothing, from any sender; what is asked for, and in which order."""

from __future__ import annotations

import pytest
from consensus_board import BEGINNING, RUN
from consensus_messages import MESSAGES
from consensus_scenes import Table, configuration, machine
from consensus_step import SEGMENTS
from hypothesis import given
from hypothesis import strategies as st

from picoedge.mesh.consensus import events as e
from picoedge.mesh.consensus import messages as m
from picoedge.mesh.consensus.configuration import (
    Ballot,
    BoardId,
    Epoch,
    Role,
    RunGeneration,
    Snapshot,
)
from picoedge.mesh.consensus.machine import Machine
from picoedge.mesh.consensus.record import StoredRecord

A, B, C, D = BOARDS = tuple(BoardId(key, 1) for key in "abcd")
BASE = configuration((A, B, C))
INSTANCE = BASE.epoch.next
ONE = Ballot(1, 0, B)
NEXT = configuration((B, C), epoch=INSTANCE, ballot=ONE, start=2)


def told(
    found: Machine, sender: BoardId, message: m.ConsensusMessage, to: int = 1
) -> list[e.Effect]:
    return found.on(e.FrameReceived(sender, to, message))


def said(effects: list[e.Effect], kind: type) -> list[e.Send]:
    return [one for one in effects if isinstance(one, e.Send) and isinstance(one.message, kind)]


def stuck(board: BoardId = A) -> Machine:
    """A member that has reason to answer a `Prepare`."""
    return Table((A, B, C)).machines[board]


def test_accepted_is_said_when_the_record_is_durable_and_no_earlier() -> None:
    found = stuck()
    told(found, B, m.Prepare(INSTANCE, ONE, ()))
    effects = told(found, B, m.Accept(INSTANCE, ONE, NEXT, (A, B)))
    stores = [one for one in effects if isinstance(one, e.Store)]
    assert [one.record for one in stores] == [StoredRecord(BASE, m.Vote(ONE, NEXT))]
    assert said(effects, m.Accepted) == []
    assert said(found.on(e.Stored(stores[0].sequence - 1)), m.Accepted) == []
    assert {one.key for one in said(found.on(e.Stored(stores[0].sequence)), m.Accepted)} == {
        "b",
        "c",
    }


def test_a_promise_waits_for_the_worker() -> None:
    found = stuck()
    effects = told(found, B, m.Prepare(INSTANCE, ONE, ()))
    assert e.Freeze(INSTANCE) in effects
    assert said(effects, m.Promise) == []
    state = Snapshot(BEGINNING, 3, None)
    report = e.Report(state, BASE.identity, holds_sum=True, finished=5)
    promise = said(found.on(e.Frozen(INSTANCE, report)), m.Promise)[0].message
    assert promise == m.Promise(INSTANCE, ONE, Role.TRAINER, m.Standing(state, True, 5), None, None)


def test_a_vote_that_is_being_written_is_in_a_promise() -> None:
    found = stuck()
    told(found, B, m.Prepare(INSTANCE, ONE, ()))
    told(found, B, m.Accept(INSTANCE, ONE, NEXT, (A, B)))
    told(found, C, m.Prepare(INSTANCE, Ballot(2, 0, C), ()))
    promise = said(found.on(e.Frozen(INSTANCE, e.NO_STATE)), m.Promise)[0].message
    assert isinstance(promise, m.Promise)
    assert promise.vote == m.Vote(ONE, NEXT)


def test_a_configuration_is_chosen_by_a_quorum_in_one_ballot() -> None:
    found = machine(D, BASE)
    two = Ballot(2, 0, C)
    told(found, A, m.Accepted(INSTANCE, ONE, NEXT))
    told(found, B, m.Accepted(INSTANCE, two, NEXT))
    told(found, D._replace(key="x"), m.Accepted(INSTANCE, two, NEXT))  # it has no vote
    assert found.known == BASE
    assert e.Adopt(NEXT) in told(found, C, m.Accepted(INSTANCE, two, NEXT))
    assert found.known == NEXT


def test_a_frame_of_an_earlier_epoch_is_answered_by_the_configuration() -> None:
    found = machine(A, NEXT)
    effects = told(found, C, m.Suspect(INSTANCE, (A,), True))
    assert [one.message for one in said(effects, m.Configured)] == [m.Configured(NEXT)]
    assert told(found, C, m.Suspect(INSTANCE, (A,), True)) == []  # once a tick


def test_a_frame_of_a_later_epoch_asks_for_the_configuration() -> None:
    found = machine(A, BASE)
    effects = told(found, C, m.Agree(NEXT.epoch.next))
    assert len(said(effects, m.Beat)) == 1


def test_votes_for_an_earlier_process_are_dropped() -> None:
    found = machine(BoardId("a", 2), None, (1, StoredRecord(BASE)))
    for _ in range(9):
        found.on(e.Tick())
    assert told(found, B, m.Prepare(INSTANCE, ONE, ()), to=1) == []
    assert told(found, B, m.Prepare(INSTANCE, ONE, ()), to=2) != []


def test_a_past_process_of_a_board_is_heard_no_more() -> None:
    found = stuck()
    told(found, B._replace(incarnation=2), m.Agree(INSTANCE))
    assert told(found, B, m.Prepare(INSTANCE, ONE, ())) == []


@pytest.mark.parametrize("message", MESSAGES, ids=[type(one).__name__ for one in MESSAGES])
def test_a_revoked_board_changes_nothing(message: m.ConsensusMessage) -> None:
    found = stuck()
    found.on(e.Revoked("b"))
    assert told(found, B, message) == []
    assert found.known == BASE


def test_configurations_of_another_run_are_ignored() -> None:
    found = Machine(A, Role.TRAINER, "another run", SEGMENTS)
    assert told(found, B, m.Configured(BASE)) == []
    assert found.known is None
    assert BASE.run == RUN


def test_ballots_of_one_board_are_answered_so_many_times_only() -> None:
    found = stuck()
    answered = 0
    for i in range(1, 50):
        ballot = Ballot(i, 0, B)
        told(found, B, m.Prepare(INSTANCE, ballot, ()))
        answered += found.acceptor.promised == ballot
    assert answered == 8


def test_an_owners_command_is_refused_while_the_run_goes_on() -> None:
    found = machine(A, BASE)
    for progress in range(20):
        state = Snapshot(BEGINNING, progress, None)
        found.on(e.Reported(e.Report(state, BASE.identity, progress=progress)))
        found.on(e.Tick())
    assert found.on(e.Resume()) == [e.Declined("the run goes on")]
    for _ in range(10):
        found.on(e.Tick())
    assert any(
        isinstance(one, e.Broadcast) and isinstance(one.message, m.Survey)
        for one in found.on(e.Resume())
    )


def test_a_survey_whose_command_died_stops_nobody_for_long() -> None:
    found = machine(A, BASE)
    generation = RunGeneration(1, D)
    assert e.Freeze(Epoch(generation, 0)) in told(found, D, m.Survey(generation))
    thawed = [one for _ in range(20) for one in found.on(e.Tick()) if isinstance(one, e.Freeze)]
    assert thawed == [e.Freeze(BASE.epoch)]


SENDERS = st.sampled_from([BoardId(key, n) for key in "abcdx" for n in (1, 2)])
EVENTS = st.one_of(
    st.just(e.Tick()),
    st.builds(
        e.FrameReceived, SENDERS, st.sampled_from([0, 1, 2]), st.sampled_from(MESSAGES),
        st.booleans(),
    ),
    st.builds(e.Frozen, st.just(INSTANCE), st.just(e.NO_STATE)),
    st.builds(e.Stored, st.integers(0, 9)),
    st.builds(e.Lost, st.sampled_from("abcx")),
    st.builds(e.Proven, SENDERS),
    st.just(e.Resume()), st.just(e.Join()), st.just(e.Leave()),
)  # fmt: skip


@given(st.lists(EVENTS, max_size=40))
def test_no_order_of_events_breaks_a_machine(history: list[e.MachineEvent]) -> None:
    found, epoch = machine(A, BASE), BASE.epoch
    for event in history:
        for effect in found.on(event):
            assert not isinstance(effect, e.Send) or effect.key != "a"
        assert found.known is not None
        assert found.known.epoch >= epoch
        epoch = found.known.epoch


def requested(copies: int, leave: m.Request) -> list[e.Effect]:
    """What the lowest rank of so many members does when the last of them wants to leave."""
    members = BOARDS[:copies]
    found = machine(A, configuration(members))
    for step in (0, 2):
        state = Snapshot(BEGINNING, step, None)
        found.on(e.Reported(e.Report(state, configuration(members).identity)))
    return told(found, members[-1], leave)


def test_a_leave_leaves_two_copies_unless_the_owner_says_so() -> None:
    fence = e.Fence(Ballot(0, 1, A), None)
    assert requested(3, m.Request(leave=True)) == [fence]
    assert requested(2, m.Request(leave=True)) == []
    assert requested(2, m.Request(leave=True, leaves_one=True)) == [fence]


def test_a_lost_connection_is_asked_about_at_once() -> None:
    found = stuck()
    told(found, C, m.Agree(INSTANCE))
    asked = [one.message for one in said(found.on(e.Lost("c")), m.Suspect)]
    assert asked
    assert all(isinstance(one, m.Suspect) and C in one.boards for one in asked)


def test_a_witness_that_is_gone_is_no_reason_to_agree() -> None:
    base = configuration((A, B, C))
    base = type(base)(**{
        **{name: getattr(base, name) for name in type(base).__slots__},
        "members": (A, B), "holdings": (0, 0), "weights": (1, 1), "shares": (2, 1),
    })  # fmt: skip
    found = machine(A, base)
    for sender in (B, C):
        told(found, sender, m.Unheard("d"))
    found.on(e.Lost("c"))
    assert said(told(found, B, m.Suspect(base.epoch.next, (C, B), True)), m.Agree) == []
    found.on(e.Lost("b"))
    assert said(told(found, C, m.Suspect(base.epoch.next, (B,), True)), m.Agree) != []


def test_a_ballot_is_proposed_by_its_own_board() -> None:
    found = stuck()
    assert told(found, C, m.Prepare(INSTANCE, ONE, ())) == []  # ONE is of b
    told(found, B, m.Prepare(INSTANCE, ONE, ()))
    assert told(found, C, m.Accept(INSTANCE, ONE, NEXT, (A, B))) == []


def test_a_configuration_that_follows_nothing_is_not_accepted() -> None:
    found = stuck()
    told(found, B, m.Prepare(INSTANCE, ONE, ()))
    for epoch in (BASE.epoch, INSTANCE.next, Epoch(RunGeneration(1, B), 1)):
        odd = configuration((B, C), epoch=epoch, ballot=ONE, start=2)
        assert told(found, B, m.Accept(INSTANCE, ONE, odd, (A, B))) == []
        for sender in (B, C):
            told(found, sender, m.Accepted(INSTANCE, ONE, odd))
    assert found.known == BASE


def test_a_board_that_restarts_while_it_is_surveyed_counts_once() -> None:
    found = machine(A, BASE)
    for _ in range(9):
        found.on(e.Tick())
    found.on(e.Resume())
    generation = RunGeneration(1, A)
    for incarnation in (1, 2):
        latest = Snapshot(BEGINNING, 7, None)
        answer = m.Surveyed(generation, BASE, latest)
        told(found, B._replace(incarnation=incarnation), answer)
    for _ in range(9):
        found.on(e.Tick())
    assert found.known is not None
    assert found.known.members == (B._replace(incarnation=2),)
    assert found.known.fault() == ""
