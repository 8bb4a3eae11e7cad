"""The settings at the head of a large `tokenizer.json`, read without its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from picoedge.fields import require_whole, within_values
from picoedge.files import MOST_TOKEN_VALUES, reading

# Gemma's 6,400 added tokens take 1.4 MB.
_HEAD_BYTES = 8 << 20


def read_head(path: Path) -> dict[str, Any]:
    """The top-level values that stand before the model, in the order of the file.

    Malformed JSON ends the head; nothing is raised for it.
    """
    with reading(path), path.open("rb") as file:
        data = file.read(_HEAD_BYTES)
    text = data[: within_values(data, MOST_TOKEN_VALUES)].decode("utf-8", "replace")
    decode = json.JSONDecoder().raw_decode
    head: dict[str, Any] = {}
    at, opener = _skip(text, 0), "{"
    while text[at : at + 1] == opener:
        try:
            key, at = decode(text, _skip(text, at + 1))
            at = _skip(text, at)
            if key == "model" or not isinstance(key, str) or text[at : at + 1] != ":":
                break
            value, at = decode(text, _skip(text, at + 1))
            require_whole(value)
        except (ValueError, RecursionError):  # cut, or no JSON
            break
        head[key] = value
        at, opener = _skip(text, at), ","
    return head


def _skip(text: str, at: int) -> int:
    """The next place that is no white space."""
    while text[at : at + 1].isspace():
        at += 1
    return at
