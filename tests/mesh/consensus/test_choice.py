"""What is proposed from promises."""

from __future__ import annotations

from consensus_board import BEGINNING, NOBODY
from consensus_scenes import configuration

from picoedge.mesh.consensus.configuration import (
    Ballot,
    BoardId,
    Configuration,
    Epoch,
    Role,
    RunGeneration,
    Snapshot,
)
from picoedge.mesh.consensus.messages import Standing, Vote
from picoedge.mesh.consensus.proposers.choice import View, VoterAnswer, successor

A, B, C, D = (BoardId(key, 1) for key in "abcd")
BALLOT = Ballot(3, 0, A)
KNOWN = configuration((A, B, C))


def at(step: int, *, holds: bool = True, finished: int = 0) -> Standing:
    return Standing(Snapshot(BEGINNING, step, KNOWN.identity), holds, finished)


def answer(
    board: BoardId, standing: Standing | None = None, vote: Vote | None = None,
    checkpoint: int | None = None, role: Role = Role.TRAINER,
) -> VoterAnswer:  # fmt: skip
    kept = None if checkpoint is None else Snapshot(BEGINNING, checkpoint, KNOWN.identity)
    return VoterAnswer(board, role, standing, vote, kept)


def choose(*answers: VoterAnswer, known: Configuration = KNOWN) -> Configuration:
    found = propose(*answers, known=known)
    assert found is not None
    assert found.fault() == ""
    return found


def propose(*answers: VoterAnswer, known: Configuration = KNOWN) -> Configuration | None:
    view = View(known, lambda members: members, lambda board: 1, lambda board: False, 3)
    return successor(view, BALLOT, answers)


def test_those_that_answered_go_on_from_the_highest_step() -> None:
    found = choose(answer(A, at(7)), answer(B, at(8)))
    assert (found.members, found.start, found.source) == ((A, B), 8, B)
    assert found.epoch == KNOWN.epoch.next


def test_the_configuration_accepted_in_the_highest_ballot_is_proposed_again() -> None:
    first, second = (
        configuration((A, B), epoch=KNOWN.epoch.next, ballot=Ballot(n, 0, B)) for n in (1, 2)
    )
    votes = [Vote(Ballot(1, 0, B), first), Vote(Ballot(2, 0, B), second)]
    assert choose(answer(A, at(7), votes[1]), answer(B, at(8), votes[0])) == second


def test_a_micro_batch_that_two_have_finished_counts_once() -> None:
    found = choose(answer(A, at(8, finished=0b11)), answer(B, at(8, finished=0b110)))
    assert found.holdings == (0b11, 0b100)


def test_micro_batches_of_a_step_that_is_done_count_no_more() -> None:
    found = choose(answer(A, at(7, finished=0b11)), answer(B, at(8, finished=0b100)))
    assert found.holdings == (0, 0b100)


def test_without_the_sum_those_one_step_short_are_learners() -> None:
    found = choose(answer(A, at(7)), answer(B, at(8, holds=False)))
    assert (found.members, found.learners) == ((B,), (A,))


def test_the_source_is_one_that_holds_the_sum() -> None:
    found = choose(answer(A, at(8, holds=False)), answer(B, at(8)), answer(C, at(7)))
    assert (found.source, found.members) == (B, (A, B, C))


def test_a_process_that_restarted_is_a_learner() -> None:
    again = BoardId("b", 2)
    found = choose(answer(A, at(8)), answer(again), answer(D, role=Role.WITNESS))
    assert (found.members, found.learners) == ((A,), (again,))


def test_nobody_goes_back_to_a_checkpoint_while_a_voter_is_missing() -> None:
    assert propose(answer(A, checkpoint=5), answer(B, checkpoint=9)) is None


def test_a_new_generation_begins_from_the_newest_checkpoint_of_all_voters() -> None:
    again = [BoardId(key, 2) for key in "abc"]
    found = choose(*(answer(b, checkpoint=n) for b, n in zip(again, (5, 9, 9), strict=True)))
    assert found.epoch == Epoch(RunGeneration(1, NOBODY), 1)
    assert (found.members, found.learners, found.start) == ((again[1], again[2]), (again[0],), 9)


def test_a_witness_restores_nothing() -> None:
    known = configuration((A,), epoch=Epoch(BEGINNING, 2))
    assert propose(answer(A, checkpoint=9, role=Role.WITNESS), known=known) is None
