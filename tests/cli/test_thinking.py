"""Thinking is dimmed, however an answer is cut into pieces, and no character of it is changed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.cli.thinking import ThinkingStyle

CODES = re.compile("\x1b\\[2?2m")


def styled(pieces: list[str], thinks: bool = False) -> str:
    style = ThinkingStyle(thinks)
    return style.begin() + "".join(map(style.push, pieces)) + style.end()


@pytest.mark.parametrize(
    ("thinks", "text", "shown"),
    [
        (False, "<think>a</think>b", "<think>\x1b[2ma</think>\x1b[22mb"),
        (False, "\n<think>a", "\n<think>\x1b[2ma\x1b[22m"),
        (True, "a</think>b", "\x1b[2ma</think>\x1b[22mb"),
        (False, "A <think> is a tag", "A <think> is a tag"),
        (False, "<thin", "<thin"),
        (False, "", ""),
    ],
)
def test_thinking_is_dimmed(thinks: bool, text: str, shown: str) -> None:
    assert styled([text], thinks) == shown


fragments = st.sampled_from(["<think>", "</think>", "<", "think>", "/", "a", " ", "\n"])


@given(st.lists(fragments, max_size=12), st.booleans())
def test_pieces_make_no_difference(pieces: list[str], thinks: bool) -> None:
    text = "".join(pieces)
    assert styled(pieces, thinks) == styled(list(text), thinks) == styled([text], thinks)
    assert CODES.sub("", styled(pieces, thinks)) == text
    assert styled(pieces, thinks).count("\x1b[2m") == styled(pieces, thinks).count("\x1b[22m")
