"""Export the tokenizer of a GGUF: SentencePiece or byte-level BPE, by `tokenizer.ggml.model`."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from picoedge.errors import TextError
from picoedge.text.export.pretokenizers import PreTokenizer, find_pretokenizer
from picoedge.text.export.sentencepiece_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    write_model,
)
from picoedge.text.tokenizer.base import (
    END_OF_TURN,
    JSON_FILE,
    SENTENCEPIECE_FILE,
    SPACE,
    AddedToken,
    TextSettings,
)

_DAMAGED = "the file is damaged: get it again"
_PREFIX = "tokenizer.ggml."
_BYTE_TOKENS = {f"<0x{byte:02X}>" for byte in range(256)}


@dataclass(frozen=True)
class GgufVocabulary:
    """Token texts, distinct and non-empty, and their types (SentencePiece's numbers).

    `added`: tokens matched as a whole: special and user-defined ones.
    """

    tokens: Sequence[str]
    types: Sequence[int]
    added: Mapping[int, AddedToken]


def _is_special(text: str, kind: int) -> bool:
    """Whether it is a control token; some files mark end-of-turn tokens as plain text."""
    return kind in (UNKNOWN, CONTROL) or text in END_OF_TURN


def _read_vocabulary(metadata: Mapping[str, Any]) -> GgufVocabulary:
    """Tokens and types. Raises TextError where they are missing, repeat or differ in number."""
    tokens = _texts(metadata, "tokens")
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
    added = {
        i: AddedToken(text, _is_special(text, kind))
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == USER_DEFINED or _is_special(text, kind)
    }
    return GgufVocabulary(tokens, types, added)


def _texts(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    """A non-empty list of strings. Raises TextError."""
    values = metadata.get(_PREFIX + key)
    if values is None or isinstance(values, str) or not len(values):
        raise _damaged(key, "missing or empty")
    if not all(isinstance(text, str) for text in values):
        raise _damaged(key, "not a list of texts")
    return values if isinstance(values, list) else list(values)


def text_value(metadata: Mapping[str, Any], key: str) -> str | None:
    """A string, None where it is missing. Raises TextError."""
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise _damaged(key.removeprefix(_PREFIX), "not a text")
    return value


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    """A boolean, `default` where it is missing."""
    value = metadata.get(_PREFIX + key)
    return default if value is None else bool(value)


def _token_id(metadata: Mapping[str, Any], key: str, size: int) -> int | None:
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


def write_gguf_tokenizer(metadata: Mapping[str, Any], folder: Path) -> TextSettings:
    """Write the tokenizer and return its settings. Raises TextError for an unsupported kind."""
    kind = text_value(metadata, "tokenizer.ggml.model")
    if kind == "llama":
        return _write_sentencepiece(metadata, folder / SENTENCEPIECE_FILE)
    if kind == "gpt2":
        return _write_byte_level(metadata, folder / JSON_FILE)
    if kind is None:
        raise TextError("the GGUF has no tokenizer", "get a complete model file")
    raise TextError(
        f"tokenizer kind {kind!r} is not supported",
        "supported: llama (SentencePiece), gpt2 (byte-level BPE)",
    )


def _settings(
    metadata: Mapping[str, Any],
    vocabulary: GgufVocabulary,
    defaults: Mapping[str, int],
    add_bos: bool,
) -> TextSettings:
    """`defaults`: ids that a format implies where the metadata names none."""
    size = len(vocabulary.tokens)
    ids = {key: _token_id(metadata, key, size) for key in ("bos", "eos", "eot", "eom")}
    ids |= {key: i for key, i in defaults.items() if ids.get(key) is None and i < size}
    bos, eos = ids["bos"], ids["eos"]
    ends = {i for key, i in ids.items() if key != "bos" and i is not None}
    by_name = {i for i, token in vocabulary.added.items() if token.text in END_OF_TURN}
    return TextSettings(
        bos_id=bos,
        eos_ids=frozenset(ends | by_name),
        add_bos=_flag(metadata, "add_bos_token", add_bos),
        bos_token="" if bos is None else vocabulary.tokens[bos],
        eos_token="" if eos is None else vocabulary.tokens[eos],
        added=vocabulary.added,
    )


def _write_sentencepiece(metadata: Mapping[str, Any], path: Path) -> TextSettings:
    vocabulary = _read_vocabulary(metadata)
    size = len(vocabulary.tokens)
    scores = _numbers(metadata, "scores", "f", size)
    if not all(map(math.isfinite, scores)):
        raise _damaged("scores", "not numbers")
    unknown = _unknown_id(metadata, vocabulary)
    prefix = _flag(metadata, "add_space_prefix", True)
    settings = _settings(metadata, vocabulary, {"bos": 1, "eos": 2}, add_bos=True)
    byte_fallback = _has_bytes(vocabulary)
    with path.open("wb") as file:
        write_model(
            file,
            _pieces(vocabulary, scores, unknown),
            vocab_size=size,
            byte_fallback=byte_fallback,
            add_dummy_prefix=prefix,
            unk_id=unknown,
            bos_id=-1 if settings.bos_id is None else settings.bos_id,
            eos_id=min(settings.eos_ids, default=-1),
        )
    return replace(settings, space_prefix="always" if prefix else "never")


def _unknown_id(metadata: Mapping[str, Any], vocabulary: GgufVocabulary) -> int:
    """The unknown token, which SentencePiece requires."""
    named = _token_id(metadata, "unknown", len(vocabulary.tokens))
    if named is not None:
        return named
    if UNKNOWN in vocabulary.types:
        return vocabulary.types.index(UNKNOWN)
    if "<unk>" in vocabulary.tokens:
        return vocabulary.tokens.index("<unk>")
    raise TextError("the GGUF's tokenizer has no unknown token", "the file is damaged")


def _has_bytes(vocabulary: GgufVocabulary) -> bool:
    tokens = {vocabulary.tokens[i] for i, kind in enumerate(vocabulary.types) if kind == BYTE}
    if tokens and tokens != _BYTE_TOKENS:
        raise TextError("the GGUF's tokenizer lacks some byte tokens", "the file is damaged")
    return bool(tokens)


def _pieces(
    vocabulary: GgufVocabulary, scores: Sequence[float], unknown: int
) -> Iterator[tuple[str, float, int]]:
    taken = set(vocabulary.tokens)
    rows = zip(vocabulary.tokens, scores, vocabulary.types, strict=True)
    for i, (text, score, kind) in enumerate(rows):
        if i == unknown:
            kind = UNKNOWN
        elif _is_special(text, kind):
            kind = CONTROL
        elif kind == USER_DEFINED:
            # GGUF writes these with plain spaces; SentencePiece matches its own.
            spaced = text.replace(" ", SPACE)
            text = text if spaced in taken else spaced
        elif kind not in (UNUSED, BYTE):
            kind = NORMAL
        yield text, score, kind


def _write_byte_level(metadata: Mapping[str, Any], path: Path) -> TextSettings:
    name = text_value(metadata, "tokenizer.ggml.pre") or "default"
    pretokenizer = find_pretokenizer(name)
    vocabulary = _read_vocabulary(metadata)
    merges = _texts(metadata, "merges")
    with path.open("w", encoding="utf-8") as file:
        # In parts, to save memory, and compact: the file is parsed at each start.
        file.write('{"version":"1.0",' + _json(_frame(pretokenizer, vocabulary.added))[1:-1])
        file.write(',"model":{"type":"BPE",' + _json(_model(pretokenizer))[1:-1])
        file.write(',"vocab":' + _json({text: i for i, text in enumerate(vocabulary.tokens)}))
        file.write(',"merges":' + _json(merges) + "}}")
    settings = _settings(metadata, vocabulary, {}, pretokenizer.add_bos)
    return replace(settings, added={})  # tokenizer.json holds them


def _frame(pretokenizer: PreTokenizer, added: Mapping[int, AddedToken]) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = [
        {"id": i, "content": token.text, **plain, "special": token.special}
        for i, token in added.items()
    ]
    form = pretokenizer.normalizer
    return {
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": None if form is None else {"type": form},
        "pre_tokenizer": pretokenizer.to_json(),
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True
        },
    }  # fmt: skip


def _model(pretokenizer: PreTokenizer) -> dict[str, Any]:
    return {
        "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": pretokenizer.ignore_merges,
    }  # fmt: skip


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
