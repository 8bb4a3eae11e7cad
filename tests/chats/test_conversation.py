"""A conversation as the fold over its records: turns, repeats, loads, and nonsense."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.chats.conversation import ChatAdapter, Conversation, apply, fold, snapshot, turn

BEGAN = {"kind": "chat", "version": 1, "at": 1e9, "model": "parrot", "source": "/parrot.gguf"}


def asked(text: str) -> dict[str, Any]:
    return {"kind": "question", "text": text}


def answered(text: str, end: str = "stop") -> dict[str, Any]:
    return {"kind": "answer", "text": text, "end": end}


REGENERATE = {"kind": "regenerate"}


def test_turns() -> None:
    after = fold([BEGAN, asked("a"), answered("b"), asked("c"), answered("d")])
    assert after.messages == (*turn("a", "b"), *turn("c", "d"))
    assert (after.model, after.source, after.began_at) == ("parrot", "/parrot.gguf", 1e9)
    assert after.unanswered is None


def test_a_question_without_an_answer_waits_for_one() -> None:
    after = fold([BEGAN, asked("a"), answered("b"), asked("c")])
    assert after.unanswered == "c"
    assert after.prompt == [*turn("a", "b"), {"role": "user", "content": "c"}]
    assert apply(after, answered("d")).messages == (*turn("a", "b"), *turn("c", "d"))


def test_an_empty_answer_takes_the_question_back() -> None:
    assert fold([asked("a"), answered("", "cancelled")]) == Conversation()


def test_a_later_question_takes_the_place_of_one_without_an_answer() -> None:
    assert fold([asked("a"), asked("b"), answered("c")]).messages == turn("b", "c")


def test_a_question_asked_again_keeps_its_answer_until_there_is_another() -> None:
    before = fold([asked("a"), answered("b"), REGENERATE])
    assert before.messages == turn("a", "b")
    assert before.unanswered is None
    assert before.prompt == [{"role": "user", "content": "a"}]
    assert apply(before, answered("c")).messages == turn("a", "c")
    assert apply(before, answered("")).messages == turn("a", "b")
    assert fold([*snapshot(before), asked("n"), answered("m")]).messages == (
        *turn("a", "b"),
        *turn("n", "m"),
    )


def test_a_load_replaces_the_messages_and_the_system_message() -> None:
    loaded = {"kind": "load", "system": "Rhyme.", "messages": list(turn("x", "y"))}
    after = fold([{"kind": "set", "name": "system", "value": "Be brief."}, asked("a"), loaded])
    assert (after.system, after.messages, after.question) == ("Rhyme.", turn("x", "y"), None)


ADAPTER = {"kind": "adapter", "path": "/my/adapter", "identity": "0a" * 16}


def test_the_last_adapter_counts_and_may_be_none() -> None:
    after = fold([BEGAN, ADAPTER, asked("a"), answered("b")])
    assert after.adapter == ChatAdapter("/my/adapter", "0a" * 16)
    assert after.adapter.name == "adapter"
    other = apply(after, {**ADAPTER, "path": "/your/other/"})
    assert other.adapter is not None
    assert other.adapter.name == "other"
    assert apply(other, {"kind": "adapter", "path": ""}).adapter is None
    assert apply(after, BEGAN).adapter == after.adapter
    assert fold(snapshot(after)) == after


@pytest.mark.parametrize(
    "wrong",
    [
        {"identity": "0a"},
        {"identity": "0A" * 16},
        {"identity": ["0a" * 16]},
        {"path": None},
        {"path": ["/my"]},
        {"path": "a" * 5000},
    ],
)
def test_an_adapter_that_makes_no_sense_changes_nothing(wrong: dict[str, Any]) -> None:
    before = fold([BEGAN, ADAPTER])
    assert apply(before, {**ADAPTER, **wrong}) == before


texts = st.text(max_size=6) | st.sampled_from(["a", "b", "\ud800"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
messages = st.lists(
    st.builds(lambda q, a: list(turn(q, a)), texts, texts), max_size=2
).map(lambda turns: [message for pair in turns for message in pair])  # fmt: skip
sensible = (
    st.builds(asked, texts)
    | st.builds(answered, texts)
    | st.just(REGENERATE)
    | st.builds(lambda name, value: {"kind": "set", "name": name, "value": value}, texts, texts)
    | st.sampled_from([ADAPTER, {**ADAPTER, "path": "/b"}, {**ADAPTER, "path": ""}])
    | st.builds(lambda m, s: {"kind": "load", "messages": m, "system": s}, messages, texts)
)
nonsense = st.dictionaries(
    st.sampled_from(
        ["kind", "text", "name", "value", "messages", "system", "at", "model", "path", "identity"]
    ),
    values
    | st.sampled_from(["chat", "question", "answer", "load", "set", "regenerate", "adapter"]),
)
records = st.lists(sensible | nonsense, max_size=12)


@given(records)
def test_any_records_make_whole_turns_that_utf8_can_hold(given: list[dict[str, Any]]) -> None:
    after = fold(given)
    roles = [message["role"] for message in after.messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    for message in after.prompt:
        message["content"].encode()


@given(records, records)
def test_a_snapshot_goes_on_as_the_whole_file_would(
    before: list[dict[str, Any]], later: list[dict[str, Any]]
) -> None:
    whole = fold(before)
    assert fold([*snapshot(whole), *later]) == fold([*before, *later])
