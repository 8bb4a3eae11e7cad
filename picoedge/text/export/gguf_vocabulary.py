"""Tokenizer fields of a GGUF's metadata, checked."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from picoedge.errors import TextError
from picoedge.text.export.sentencepiece_proto import CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from picoedge.text.tokenizer.settings import END_OF_TURN, AddedToken

_DAMAGED = "the file is damaged: get it again"
_PREFIX = "tokenizer.ggml."


@dataclass(frozen=True)
class GgufVocabulary:
    """Token texts, distinct and non-empty, and their types (SentencePiece's numbers)."""

    tokens: Sequence[str]
    types: Sequence[int]

    def added(self) -> dict[int, AddedToken]:
        """Tokens matched as a whole: special and user-defined ones."""
        return {
            i: AddedToken(self.tokens[i], is_special(self.tokens[i], kind))
            for i, kind in enumerate(self.types)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED) or self.tokens[i] in END_OF_TURN
        }


def is_special(text: str, kind: int) -> bool:
    """Whether it is a control token; some files mark end-of-turn tokens as plain text."""
    return kind in (UNKNOWN, CONTROL) or text in END_OF_TURN


def read_vocabulary(metadata: Mapping[str, Any]) -> GgufVocabulary:
    """Tokens and types. Raises TextError where they are missing, repeat or differ in number."""
    tokens = texts(metadata, "tokens")
    if "" in tokens:
        tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(tokens)]
    if len(set(tokens)) != len(tokens):
        seen: dict[str, int] = {}
        for i, text in enumerate(tokens):
            if seen.setdefault(text, i) != i:
                raise _damaged("tokens", f"{text!r} is both {seen[text]} and {i}")
    types = array("b", bytes([NORMAL])) * len(tokens)
    if _PREFIX + "token_type" in metadata:
        types = _numbers(metadata, "token_type", "b", len(tokens))
    return GgufVocabulary(tokens, types)


def texts(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    """A non-empty list of strings. Raises TextError."""
    values = metadata.get(_PREFIX + key)
    if values is None or isinstance(values, str) or not len(values):
        raise _damaged(key, "missing or empty")
    if not all(isinstance(text, str) for text in values):
        raise _damaged(key, "not a list of texts")
    return values if isinstance(values, list) else list(values)


def scores(metadata: Mapping[str, Any], count: int) -> Sequence[float]:
    """Merge priorities, f32 [count]. Raises TextError."""
    values = _numbers(metadata, "scores", "f", count)
    if not all(map(math.isfinite, values)):
        raise _damaged("scores", "not numbers")
    return values


def text_value(metadata: Mapping[str, Any], key: str) -> str | None:
    """A string, None where it is missing. Raises TextError."""
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise _damaged(key.removeprefix(_PREFIX), "not a text")
    return value


def flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    """A boolean, `default` where it is missing."""
    value = metadata.get(_PREFIX + key)
    return default if value is None else bool(value)


def token_id(metadata: Mapping[str, Any], key: str, size: int) -> int | None:
    """A token id, None where it is missing. Raises TextError outside 0 .. size-1."""
    value = metadata.get(f"{_PREFIX}{key}_token_id")
    if value is None:
        return None
    if isinstance(value, (str, float, list)) or not 0 <= int(value) < size:
        raise _damaged(f"{key}_token_id", f"{value!r} is not a token of {size}")
    return int(value)


def _numbers(metadata: Mapping[str, Any], key: str, code: str, count: int) -> array[Any]:
    values = metadata.get(_PREFIX + key)
    if values is None or isinstance(values, str) or len(values) < count:
        raise _damaged(key, f"not {count} values")
    try:
        return array(code, values[:count])
    except (TypeError, OverflowError) as error:
        raise _damaged(key, str(error)) from error


def _damaged(key: str, what: str) -> TextError:
    return TextError(f"{_PREFIX}{key}: {what}", _DAMAGED)
