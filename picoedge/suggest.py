"""Suggestions for a misspelt word."""

from __future__ import annotations

from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`; None where none is like it."""
    from difflib import get_close_matches  # 4 ms that help should not pay

    return next(iter(get_close_matches(word, list(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str], template: str = "{}") -> str:
    """`did you mean: chat?`; empty where no known word is like `word`."""
    near = closest(word, known)
    return f"did you mean: {template.format(near)}?" if near else ""
