"""Export the tokenizer of a GGUF: SentencePiece or byte-level BPE, by `tokenizer.ggml.model`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from picoedge.errors import TextError
from picoedge.text.export.byte_level import write_byte_level
from picoedge.text.export.pretokenizers import find_pretokenizer
from picoedge.text.export.recognition import recognise
from picoedge.text.export.sentencepiece_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    write_model,
)
from picoedge.text.export.special_names import WrittenNames
from picoedge.text.export.vocabulary import (
    GgufVocabulary,
    damaged,
    flag,
    lost_ids,
    numbers,
    read_vocabulary,
    text_value,
    texts,
    token_id,
)
from picoedge.text.tokenizer.base import (
    END_OF_TURN,
    JSON_FILE,
    SENTENCEPIECE_FILE,
    SPACE,
    TextSettings,
)

_BYTE_TOKENS = {f"<0x{byte:02X}>" for byte in range(256)}


def write_gguf_tokenizer(
    metadata: Mapping[str, Any], folder: Path, names: WrittenNames
) -> TextSettings:
    """Write the tokenizer and return its settings. `names`: what the chat template writes, which
    become one token each. Raises TextError for an unsupported kind.
    """
    kind = text_value(metadata, "tokenizer.ggml.model")
    if kind in ("llama", "gpt2"):
        vocabulary = read_vocabulary(metadata, names)
        if kind == "llama":
            return _write_sentencepiece(metadata, vocabulary, folder / SENTENCEPIECE_FILE)
        return _write_byte_level(metadata, vocabulary, folder / JSON_FILE)
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
    ids = {key: token_id(metadata, key, size) for key in ("bos", "eos", "eot", "eom")}
    ids |= {key: i for key, i in defaults.items() if ids.get(key) is None and i < size}
    bos, eos = ids["bos"], ids["eos"]
    ends = {i for key, i in ids.items() if key != "bos" and i is not None}
    by_name = {i for i, token in vocabulary.added.items() if token.text in END_OF_TURN}
    return TextSettings(
        bos_id=bos,
        eos_ids=frozenset(ends | by_name),
        add_bos=flag(metadata, "add_bos_token", add_bos),
        bos_token="" if bos is None else vocabulary.tokens[bos],
        eos_token="" if eos is None else vocabulary.tokens[eos],
        added=vocabulary.added,
        aliases=vocabulary.aliases,
        notes=tuple(
            f"the file's {key} is no token of its {size}: passed over"
            for key in lost_ids(metadata, size)
        ),
    )


def _write_sentencepiece(
    metadata: Mapping[str, Any], vocabulary: GgufVocabulary, path: Path
) -> TextSettings:
    size = len(vocabulary.tokens)
    # Without scores, as to llama.cpp, none comes before another.
    listed = "tokenizer.ggml.scores" in metadata
    scores: Sequence[float] = numbers(metadata, "scores", "f", size) if listed else [0.0] * size
    if not all(map(math.isfinite, scores)):
        raise damaged("scores", "not numbers")
    unknown = _unknown_id(metadata, vocabulary)
    prefix = flag(metadata, "add_space_prefix", True)
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
    named = token_id(metadata, "unknown", len(vocabulary.tokens))
    if named is not None:
        return named
    if UNKNOWN in vocabulary.types:
        return vocabulary.types.index(UNKNOWN)
    if "<unk>" in vocabulary.tokens:
        return vocabulary.tokens.index("<unk>")
    if vocabulary.types[0] == CONTROL:
        return 0
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
        elif kind == UNKNOWN:
            kind = CONTROL
        elif kind == USER_DEFINED:
            # GGUF writes these with plain spaces; SentencePiece matches its own.
            spaced = text.replace(" ", SPACE)
            text = text if spaced in taken else spaced
        elif kind not in (UNUSED, BYTE, CONTROL):
            kind = NORMAL
        yield text, score, kind


def _write_byte_level(
    metadata: Mapping[str, Any], vocabulary: GgufVocabulary, path: Path
) -> TextSettings:
    named, warnings = text_value(metadata, "tokenizer.ggml.pre"), []
    name, certain = (named, True) if named else recognise(vocabulary.tokens)
    if not certain:
        warnings.append(
            f"the file names no pre-tokenizer; {name!r} is assumed by its vocabulary, "
            "and answers may be worse than the model's: get a newer file"
        )
    pretokenizer = find_pretokenizer(name)
    merges = texts(metadata, "merges")
    tokens = zip(vocabulary.tokens, count())
    write_byte_level(path, pretokenizer, tokens, merges, vocabulary.added)
    settings = _settings(metadata, vocabulary, {}, pretokenizer.add_bos)
    return replace(settings, added={}, warnings=tuple(warnings))  # tokenizer.json has the tokens
