"""What somebody meant who wrote a word we do not know."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], template: str = "{}") -> str:
    """`did you mean: chat?`, or nothing where no known word is near."""
    from difflib import get_close_matches  # 4 ms that help should not pay

    near = get_close_matches(word, list(known), n=1)
    return f"did you mean: {template.format(near[0])}?" if near else ""
