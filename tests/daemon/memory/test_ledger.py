"""The ledger of a board's memory: what a claim ends, and what it never ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from picoedge.daemon.memory.ledger import Claim, MemoryLedger, Use

BUDGET = 100


def claim(user: str, use: Use, nbytes: int, since_s: float = 0.0) -> Claim:
    return Claim(user, use, nbytes, since_s)


def test_an_answer_ends_training_before_a_kept_slice() -> None:
    ledger = MemoryLedger()
    assert ledger.claim(claim("run", Use.TRAINING, 40), BUDGET) == []
    assert ledger.claim(claim("kept", Use.KEPT, 40), BUDGET) == []
    ended = ledger.claim(claim("chat", Use.ANSWER, 50), BUDGET)
    assert ended is not None
    assert [each.user for each in ended] == ["run"]
    ended = ledger.claim(claim("chat", Use.ANSWER, 100), BUDGET)
    assert ended is not None
    assert [each.user for each in ended] == ["kept"]


def test_training_waits_for_a_kept_slice_and_a_kept_slice_for_an_answer() -> None:
    ledger = MemoryLedger()
    assert ledger.claim(claim("kept", Use.KEPT, 60), BUDGET) == []
    assert ledger.claim(claim("run", Use.TRAINING, 50), BUDGET) is None
    assert ledger.claim(claim("chat", Use.ANSWER, 90), BUDGET) is not None
    assert ledger.claim(claim("kept", Use.KEPT, 60), BUDGET) is None
    ledger.release("chat")
    assert ledger.room(Use.TRAINING, BUDGET) == BUDGET


def test_a_claim_becomes_another_without_more_memory() -> None:
    ledger = MemoryLedger()
    ledger.claim(claim("chat", Use.ANSWER, 80), BUDGET)
    ledger.turn("chat", claim("kept", Use.KEPT, 30, 5.0))
    assert ledger.claims == [claim("kept", Use.KEPT, 30, 5.0)]
    assert ledger.claims[0].to_json(65.0)["age_s"] == 60


CLAIMS = st.builds(
    Claim,
    st.sampled_from("abcd"),
    st.sampled_from(Use),
    st.integers(0, 120),
    st.floats(0, 100),
)


@given(st.lists(st.one_of(CLAIMS, st.sampled_from("abcd")), max_size=30))
def test_no_more_is_given_than_there_is_and_the_lesser_use_ends(steps: list[Claim | str]) -> None:
    ledger = MemoryLedger()
    for step in steps:
        before = list(ledger.claims)
        if isinstance(step, str):
            ledger.release(step)
            assert ledger.claims == [each for each in before if each.user != step]
            continue
        others = [each for each in before if each.user != step.user]
        ended = ledger.claim(step, BUDGET)
        if ended is None:  # only where those that come before it, or beside it, leave no room
            assert ledger.claims == before
            stay = [each for each in others if not step.use.comes_before(each.use)]
            assert step.nbytes > BUDGET - sum(each.nbytes for each in stay)
            continue
        assert step in ledger.claims
        assert sum(each.nbytes for each in ledger.claims) <= BUDGET
        assert sorted(map(repr, [*ledger.claims, *ended])) == sorted(map(repr, [*others, step]))
        assert all(step.use.comes_before(each.use) for each in ended)
        kept = [each for each in ledger.claims if step.use.comes_before(each.use)]
        for one in ended:  # nothing of a lesser use stays in its stead
            assert not any(one.use.comes_before(other.use) for other in kept)
        if ended:  # and none of them ended for nothing
            last = ended[-1]
            assert sum(each.nbytes for each in ledger.claims) + last.nbytes > BUDGET
