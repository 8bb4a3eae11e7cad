"""Words of others as one harmless line, and as JSON that a terminal shows as it is."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.sanitize import json_escaped, one_line, printable

HOSTILE = [
    ("\x1b[2Jb3 is lost", "[2Jb3 is lost"),
    ("one\nerror: forged", "one error: forged"),
    ("a\r\nb\u2028c\x85d", "a  b c d"),
    ("\x9b31mred\x07", "31mred"),
    ("abc\u202e\u2066cba\u200f\u061c", "abccba"),
    ("in\u200bvis\ufeffible\U000e0041", "invisible"),
    ("half \ud800", "half"),
    ("می\u200cخواهم", "می\u200cخواهم"),
    ("  plain  ", "plain"),
]


@pytest.mark.parametrize(("text", "line"), HOSTILE, ids=lambda value: ascii(value)[:40])
def test_words_of_others_are_one_harmless_line(text: str, line: str) -> None:
    assert one_line(text) == line


@given(st.text(), st.integers(1, 50))
def test_any_text_is_one_short_line(text: str, most: int) -> None:
    line = one_line(text, most)
    assert len(line) <= most
    categories = {unicodedata.category(each) for each in line if each not in "\u200c\u200d"}
    assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_escaped_json_is_the_same_document_and_moves_no_cursor(text: str) -> None:
    document = json_escaped(json.dumps([text], ensure_ascii=False))
    assert json.loads(document) == [text]
    assert not {unicodedata.category(each) for each in document} & {"Cc", "Zl", "Zp"}


def test_a_long_text_is_cut() -> None:
    assert one_line("x" * 10_000, 5) == "xxxx…"


def test_an_answer_keeps_its_lines() -> None:
    assert printable("a\n\tb\x1b[2J") == "a\n\tb[2J"
