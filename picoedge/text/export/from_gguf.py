"""Export a GGUF's tokenizer: SentencePiece or byte-level BPE, by `tokenizer.ggml.model`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from picoedge.errors import TextError
from picoedge.text.export import gguf_vocabulary as gguf
from picoedge.text.export.gguf_vocabulary import GgufVocabulary
from picoedge.text.export.pretokenizers import PreTokenizer, find_pretokenizer
from picoedge.text.export.sentencepiece_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    ModelSpec,
    write_model,
)
from picoedge.text.tokenizer.base import JSON_FILE, SENTENCEPIECE_FILE, SPACE
from picoedge.text.tokenizer.settings import END_OF_TURN, AddedToken, TextSettings

_BYTE_TOKENS = {f"<0x{byte:02X}>" for byte in range(256)}


def write_gguf_tokenizer(metadata: Mapping[str, Any], folder: Path) -> TextSettings:
    """Write the tokenizer and return its settings. Raises TextError for an unsupported kind."""
    kind = gguf.text_value(metadata, "tokenizer.ggml.model")
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
    added: Mapping[int, AddedToken],
    defaults: Mapping[str, int],
    add_bos: bool,
) -> TextSettings:
    """`defaults`: ids that a format implies where the metadata names none."""
    size = len(vocabulary.tokens)
    ids = {key: gguf.token_id(metadata, key, size) for key in ("bos", "eos", "eot", "eom")}
    ids |= {key: i for key, i in defaults.items() if ids.get(key) is None and i < size}
    bos, eos = ids["bos"], ids["eos"]
    ends = {i for key, i in ids.items() if key != "bos" and i is not None}
    by_name = {i for i, token in added.items() if token.text in END_OF_TURN}
    return TextSettings(
        bos_id=bos,
        eos_ids=frozenset(ends | by_name),
        add_bos=gguf.flag(metadata, "add_bos_token", add_bos),
        bos_token="" if bos is None else vocabulary.tokens[bos],
        eos_token="" if eos is None else vocabulary.tokens[eos],
        added=added,
    )


def _write_sentencepiece(metadata: Mapping[str, Any], path: Path) -> TextSettings:
    vocabulary = gguf.read_vocabulary(metadata)
    size = len(vocabulary.tokens)
    scores = gguf.scores(metadata, size)
    unknown = _unknown_id(metadata, vocabulary)
    added = vocabulary.added()
    prefix = gguf.flag(metadata, "add_space_prefix", True)
    settings = _settings(metadata, vocabulary, added, {"bos": 1, "eos": 2}, add_bos=True)
    spec = ModelSpec(
        vocab_size=size,
        byte_fallback=_has_bytes(vocabulary),
        add_dummy_prefix=prefix,
        unk_id=unknown,
        bos_id=-1 if settings.bos_id is None else settings.bos_id,
        eos_id=min(settings.eos_ids, default=-1),
    )
    with path.open("wb") as file:
        write_model(file, _pieces(vocabulary, scores, unknown), spec)
    return replace(settings, space_prefix="always" if prefix else "never")


def _unknown_id(metadata: Mapping[str, Any], vocabulary: GgufVocabulary) -> int:
    """The unknown token, which SentencePiece requires."""
    named = gguf.token_id(metadata, "unknown", len(vocabulary.tokens))
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
        elif gguf.is_special(text, kind):
            kind = CONTROL
        elif kind == USER_DEFINED:
            # GGUF writes these with plain spaces; SentencePiece matches its own.
            spaced = text.replace(" ", SPACE)
            text = text if spaced in taken else spaced
        elif kind not in (UNUSED, BYTE):
            kind = NORMAL
        yield text, score, kind


def _write_byte_level(metadata: Mapping[str, Any], path: Path) -> TextSettings:
    name = gguf.text_value(metadata, "tokenizer.ggml.pre") or "default"
    pretokenizer = find_pretokenizer(name)
    vocabulary = gguf.read_vocabulary(metadata)
    merges = gguf.texts(metadata, "merges")
    added = vocabulary.added()
    with path.open("w", encoding="utf-8") as file:
        # In parts, to save memory, and compact: the file is parsed at each start.
        file.write('{"version":"1.0",' + _json(_frame(pretokenizer, added))[1:-1])
        file.write(',"model":{"type":"BPE",' + _json(_model(pretokenizer))[1:-1])
        file.write(',"vocab":' + _json({text: i for i, text in enumerate(vocabulary.tokens)}))
        file.write(',"merges":' + _json(merges) + "}}")
    settings = _settings(metadata, vocabulary, added, {}, pretokenizer.add_bos)
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
