"""The vocabulary in a GGUF's key-values: token texts, types, and which are matched as a whole."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from picoedge.errors import TextError
from picoedge.text.export.sentencepiece_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from picoedge.text.export.special_names import WrittenNames, looks_like_control
from picoedge.text.tokenizer.base import END_OF_TURN, AddedToken

_DAMAGED = "the file is damaged: get it again"
_PREFIX = "tokenizer.ggml."
_ID_KEYS = (
    "bos", "eos", "eot", "eom", "unknown", "seperator", "separator", "padding", "mask", "cls",
)  # fmt: skip


@dataclass(frozen=True)
class GgufVocabulary:
    """Token texts, distinct and non-empty, and their types (SentencePiece's numbers).

    `added`: tokens matched as a whole: special and user-defined ones. `aliases`: tokens whose text
    an earlier one has, to that one: they decode to it, and no text becomes them.
    """

    tokens: Sequence[str]
    types: Sequence[int]
    added: Mapping[int, AddedToken]
    aliases: Mapping[int, int] = field(default_factory=dict)


def read_vocabulary(
    metadata: Mapping[str, Any], names: WrittenNames | None = None
) -> GgufVocabulary:
    """Tokens and types. `names`: what the file's own template writes.

    Raises TextError where the lists are missing or differ in number.
    """
    tokens, aliases = _distinct(texts(metadata, "tokens"))
    types = array("b", bytes([NORMAL])) * len(tokens)
    if _PREFIX + "token_type" in metadata:
        types = numbers(metadata, "token_type", "b", len(tokens))
    _correct_types(types, tokens, metadata, names or WrittenNames())
    for i in aliases:
        types[i] = UNUSED
    added = {
        i: AddedToken(text, kind != USER_DEFINED)
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    }
    return GgufVocabulary(tokens, types, added, aliases)


def _distinct(tokens: Sequence[str]) -> tuple[Sequence[str], dict[int, int]]:
    """`tokens` with a text of its own for each, and the tokens that repeat an earlier one's."""
    if "" not in tokens and len(set(tokens)) == len(tokens):
        return tokens, {}
    taken, first = set(tokens), dict[str, int]()
    distinct, aliases = list(tokens), dict[int, int]()
    for i, text in enumerate(tokens):
        if text and first.setdefault(text, i) == i:
            continue
        if text:
            aliases[i] = first[text]
        name = f"[{'REPEATED' if text else 'EMPTY'}_{i}]"
        while name in taken:
            name = f"[{name}]"
        taken.add(name)
        distinct[i] = name
    return distinct, aliases


def _correct_types(
    types: MutableSequence[int],
    tokens: Sequence[str],
    metadata: Mapping[str, Any],
    names: WrittenNames,
) -> None:
    """Type as control what ends a turn, what the file names as special, and what its template
    puts between turns; and match as a whole what else the template writes.
    """
    size = len(tokens)
    named = {token_id(metadata, key, size) for key in _ID_KEYS}
    known = names.turns | names.others
    for i, text in enumerate(tokens):
        kind = types[i]
        if text in END_OF_TURN and kind != UNKNOWN:
            types[i] = CONTROL
        elif kind in (UNKNOWN, CONTROL, BYTE) or not (text in known or i in named):
            continue
        elif looks_like_control(text) if i in named else names.is_control(text):
            types[i] = CONTROL
        elif text in known:
            types[i] = USER_DEFINED


def texts(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    """A non-empty list of strings. Raises TextError."""
    values = metadata.get(_PREFIX + key)
    if not isinstance(values, Collection) or isinstance(values, str) or not len(values):
        raise damaged(key, "missing or empty")
    if not all(isinstance(text, str) for text in values):
        raise damaged(key, "not a list of texts")
    return values if isinstance(values, list) else list(values)


def text_value(metadata: Mapping[str, Any], key: str) -> str | None:
    """A string, None where it is missing. Raises TextError."""
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise damaged(key.removeprefix(_PREFIX), "not a text")
    return value


def flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    """A boolean, `default` where it is missing."""
    value = metadata.get(_PREFIX + key)
    return default if value is None else bool(value)


def token_id(metadata: Mapping[str, Any], key: str, size: int) -> int | None:
    """A token id, None where it is missing or outside 0 .. size-1, as -1 is in old files.

    Raises TextError for a value that is no integer.
    """
    value = metadata.get(f"{_PREFIX}{key}_token_id")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise damaged(f"{key}_token_id", f"{value!r} is not a token of {size}")
    return int(value) if 0 <= value < size else None


def lost_ids(metadata: Mapping[str, Any], size: int) -> list[str]:
    """Names of the tokens that begin or end texts and that the vocabulary has not."""
    keys = [f"{key}_token_id" for key in ("bos", "eos", "eot", "eom")]
    values = {key: metadata.get(_PREFIX + key) for key in keys}
    return [key for key, value in values.items() if value is not None and not 0 <= value < size]


def numbers(metadata: Mapping[str, Any], key: str, code: str, count: int) -> array[Any]:
    """The first `count` numbers of a list. Raises TextError."""
    values = metadata.get(_PREFIX + key)
    if not isinstance(values, Collection) or isinstance(values, str) or len(values) < count:
        raise damaged(key, f"not {count} values")
    try:
        return array(code, islice(values, count))
    except (TypeError, OverflowError) as error:
        raise damaged(key, str(error)) from error


def damaged(key: str, what: str) -> TextError:
    """The error for a key-value that makes no sense."""
    return TextError(f"{_PREFIX}{key}: {what}", _DAMAGED)
