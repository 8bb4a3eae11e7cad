"""Checked look-ups in JSON: sound values are returned, all else is an error that says where."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.errors import ModelError, ProtocolError, UnsupportedError, UsageError
from picoedge.fields import (
    MOST_VALUES,
    Fields,
    TooManyValuesError,
    or_else,
    parse_json,
    within_values,
)

CROWDS = {
    "nested lists": "[" + ",".join(["[" * 500 + "]" * 500] * 4000) + "]",
    "lists": "[" + "[]," * 700_000 + "[]]",
    "objects": "[" + "{}," * 700_000 + "{}]",
    "objects in objects": '{"a":[' + '{"b":{}},' * 200_000 + "{}]}",
    "texts": "[" + '"ab",' * 400_000 + '"ab"]',
    "empty texts": "[" + '"",' * 700_000 + '""]',
    "fields": "{" + ",".join(f'"{i}":{i}' for i in range(200_000)) + "}",
    "behind a text": '{"text": "\\\\\\"[", "more": [' + "[]," * 700_000 + "[]]}",
}
HEX = re.compile(r"[0-9a-f]+")
VALUES: dict[str, Any] = {
    "name": "ada", "rank": 3, "speed": 4, "on": True, "io": "mmap", "shards": [2, 5],
    "pack": {"id": "c0ffee"}, "seats": [{"key": "a"}, {"key": "b"}], "none": None,
    "addresses": ["a:1", "b:2"],
}  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def test_integers_that_no_float_can_hold_are_refused() -> None:
    for value in (10**320, -(10**320), 1 << 65):
        with pytest.raises(ProtocolError, match="is not an integer of at most"):
            Fields({"size": value}).get("size", int)


@pytest.mark.parametrize("name", CROWDS)
def test_json_of_many_small_values_takes_no_memory_to_be_refused(name: str) -> None:
    for data in (CROWDS[name], CROWDS[name].encode()):
        tracemalloc.start()
        try:
            with pytest.raises(TooManyValuesError, match="holds more than 131072 values"):
                parse_json(data)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "whole",
    [
        "[" * 500 + "]" * 500,
        '{"\N{SLIGHTLY SMILING FACE}0":{"b":{"c":[]}}}',
        '"a\N{SLIGHTLY SMILING FACE}%d"',
        '{"%d":"\N{SLIGHTLY SMILING FACE}"}',
    ],
)
def test_as_many_values_as_are_taken_fit_in_the_memory_that_is_said(whole: str) -> None:
    each = sum(map(whole.count, "[{")) + 1
    count = (MOST_VALUES - 1) // each
    data = "[" + ",".join(whole.replace("%d", str(i)) for i in range(count)) + "]"
    tracemalloc.start()
    try:
        assert len(parse_json(data)) == count
        assert tracemalloc.get_traced_memory()[1] < 300 * MOST_VALUES
    finally:
        tracemalloc.stop()


def test_brackets_and_commas_in_texts_are_no_values() -> None:
    for text in (
        "[{," * 200_000,
        '\\",[' * 200_000,
        "\\" * 200_001 + "," * 200_000,
        "é,🙂" * 200_000,
    ):
        for ensure_ascii in (True, False):
            data = json.dumps({"text": text, "next": [1]}, ensure_ascii=ensure_ascii)
            for form in (data, data.encode(), bytearray(data.encode())):
                assert parse_json(form) == {"text": text, "next": [1]}


@given(json_values, st.integers(0, 20))
def test_values_are_counted_in_any_document(value: Any, most: int) -> None:
    data = json.dumps(value)
    assert (within_values(data, most) == len(data)) == (_counted(value) <= most)


def _counted(value: Any) -> int:
    """Lists and objects, and a comma for each of their items but the first."""
    if not isinstance(value, (list, dict)):
        return 0
    inner = list(value.values() if isinstance(value, dict) else value)
    return 1 + max(0, len(inner) - 1) + sum(map(_counted, inner))


def test_values_that_are_right_are_returned() -> None:
    fields = Fields(VALUES, "the session")
    assert (fields.text("name", 3), fields.integer("rank", 3, 3)) == ("ada", 3)
    assert (fields.number("speed", 0, 4), type(fields.number("speed", 0, 4))) == (4.0, float)
    assert (fields.get("on", bool), fields.get("none", int, 7)) == (True, 7)
    assert (fields.one_of("io", ("direct", "mmap")), fields.span("shards", 5)) == (
        "mmap",
        range(2, 5),
    )
    assert fields.object("pack").text("id", 9, HEX) == "c0ffee"
    assert [seat.text("key") for seat in fields.objects("seats", 2)] == ["a", "b"]
    assert fields.texts("addresses", 2, 3) == ("a:1", "b:2")
    assert fields.only(VALUES.keys()) is fields


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda f: f.text("name", 2), "the session: name is not text of at most 2 characters"),
        (lambda f: f.text("io", 9, HEX, "hex digits"), "the session: io is not hex digits"),
        (lambda f: f.text("rank"), "the session: rank is not text of at most 2000 characters"),
        (lambda f: f.text("gone"), "the session: gone is missing"),
        (lambda f: f.integer("rank", 4, 5), "the session: rank is not an integer from 4 to 5"),
        (lambda f: f.integer("on", 0, 5), "the session: on is not an integer from 0 to 5"),
        (lambda f: f.number("on", 0, 5), "the session: on is not a number from 0 to 5"),
        (lambda f: f.positive("name"), "the session: name is not a number above zero"),
        (lambda f: f.get("rank", bool), "the session: rank is not true or false"),
        (lambda f: f.get("none", list), "the session: none is not a list"),
        (lambda f: f.one_of("on", (1, 2)), "the session: on is not one of 1, 2"),
        (lambda f: f.span("shards", 4), "the session: shards is not [first, end] within 0 and 4"),
        (lambda f: f.span("addresses", 4), "addresses is not [first, end] within 0 and 4"),
        (lambda f: f.array("seats", 1), "the session: seats is not a list of at most 1"),
        (lambda f: f.texts("seats", 2), "the session: seats is not a list of texts"),
        (lambda f: f.object("name"), "the session: name is not an object"),
        (lambda f: f.object("gone"), "the session: gone is missing"),
        (lambda f: f.object("pack").integer("id"), "the session: pack.id is not an integer"),
        (lambda f: f.objects("seats")[1].text("no"), "the session: seats.1.no is missing"),
        (lambda f: f.objects("addresses"), "the session: addresses.0 is not an object"),
        (lambda f: f.only({"name"}), "the session has an unknown 'rank'"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(read: Callable[[Fields], object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(Fields(VALUES, "the session", UsageError, "write it anew"))
    assert said in caught.value.message
    assert caught.value.hint == "write it anew"


def test_numbers_that_are_none_are_refused() -> None:
    for value in (float("nan"), float("inf"), 10**400, "1", None):
        with pytest.raises(ProtocolError):
            Fields({"speed": value}).number("speed", 0, 1e15)
        with pytest.raises(ProtocolError):
            Fields({"speed": value}).positive("speed")


def test_an_error_of_a_value_made_from_a_field_names_the_field() -> None:
    def fail(error: type[ModelError]) -> Callable[[], object]:
        def make() -> object:
            raise error("4 heads of 0")

        return make

    fields = Fields({"config": {}}, "picoedge.json", ModelError)
    with pytest.raises(ModelError, match=r"picoedge\.json: config \(4 heads of 0\) is damaged"):
        fields.build("config", fail(ModelError))
    with pytest.raises(UnsupportedError, match=r"picoedge\.json: 4 heads of 0"):
        fields.build("config", fail(UnsupportedError))


def test_a_display_shows_what_it_can() -> None:
    fields = Fields(VALUES)
    assert or_else(0, fields.integer, "rank", 0, 9) == 3
    assert or_else(0, fields.integer, "name") == 0
    assert or_else(None, fields.span, "gone", 9) is None


@given(json_values, json_values)
def test_no_json_does_more_than_be_refused(whole: object, value: object) -> None:
    for values in (whole, {"a": value}):
        try:
            fields = Fields(values)
        except ProtocolError:
            continue
        reads: list[Callable[[str], object]] = [
            fields.text, fields.integer, fields.positive, fields.array, fields.object,
            fields.objects, partial(fields.span, most=9), partial(fields.texts, most=9),
            partial(fields.number, least=0, most=9), partial(fields.one_of, choices=("x", 1)),
        ]  # fmt: skip
        for read in reads:
            or_else(None, read, "a")


@pytest.mark.parametrize(
    "data",
    ['{"a": "\\ud83d\\ude42"}', b'\xef\xbb\xbf{"a": "\xf0\x9f\x99\x82"}'],
    ids=["escaped", "bytes"],
)
def test_json_of_whole_characters_is_taken(data: str | bytes) -> None:
    assert parse_json(data) == {"a": "🙂"}


HALVES = ['{"a": "\\uD83D"}', '["\\ude42\\ud83d"]', '{"\\udfff": 1}', b'"\xed\xa0\x80"', '"\ud800"']


@pytest.mark.parametrize("data", HALVES, ids=range(len(HALVES)))
def test_json_with_half_a_character_is_refused(data: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"half a character|can't decode"):
        parse_json(data)
