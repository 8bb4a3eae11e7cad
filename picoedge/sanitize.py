"""Words of others (boards, files, models), made harmless for a terminal or a log.

A control character or an escape sequence would move the cursor, forge a line or rename a window; a
bidirectional override would show a text in another order than it has (Trojan Source).
"""

from __future__ import annotations

import re

_MOST_CHARACTERS = 2000  # of one line: longer than any message of ours, shorter than a flood
_CONTROL = {c: None for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}
_LINE_ENDS = frozenset("\n\r\t\v\f\x85\u2028\u2029")
_JOINERS = "\u200c\u200d"  # words of many languages, and emoji, are written with them
# Formats (bidirectional overrides and marks, invisible characters, tags), controls, surrogates.
_UNSEEN = ("Cc", "Cf", "Cs")

_ESCAPED_IN_JSON = re.compile(
    "[\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """`text` without control characters: a model's text must not control the terminal."""
    return text.translate(_CONTROL)


def one_line(text: str, most: int = _MOST_CHARACTERS) -> str:
    """`text` as one printable line of at most `most` characters; a longer one ends in "…"."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    if cut.isascii() and cut.isprintable():
        return cut.strip()
    return "".join(map(_shown, cut)).strip()


def _shown(character: str) -> str:
    import unicodedata  # a megabyte: for words beyond ASCII alone

    if character in _LINE_ENDS:
        return " "
    if unicodedata.category(character) in _UNSEEN and character not in _JOINERS:
        return ""
    return character


def json_escaped(document: str) -> str:
    """The same JSON document, with every character escaped that a terminal would not show."""
    return _ESCAPED_IN_JSON.sub(_as_escape, document)


def _as_escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
