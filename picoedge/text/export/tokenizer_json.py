"""A `tokenizer.json` of a SentencePiece model, in the form of the library `tokenizers`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from picoedge.text.export.pieces import Pieces
from picoedge.text.export.sentencepiece_proto import CONTROL, UNKNOWN, USER_DEFINED
from picoedge.text.tokenizer.base import SPACE, TextSettings

_SPECIAL = (UNKNOWN, CONTROL)


def tokenizer_json(pieces: Pieces, settings: TextSettings) -> dict[str, Any]:
    """The values of the file: the same ids for any text as the pack's tokenizer."""
    prefix = settings.space_prefix
    metaspace = {
        "type": "Metaspace", "replacement": SPACE, "prepend_scheme": prefix, "split": False
    }  # fmt: skip
    ends = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix != "never" else []
    replace = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(pieces),
        "normalizer": _normalizer(pieces, prefix),
        "pre_tokenizer": None if prefix == "always" else metaspace,
        "post_processor": begin_rule(settings),
        "decoder": {
            "type": "Sequence",
            "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, *ends],
        },
        "model": _bpe(pieces) if pieces.rules.is_bpe else _unigram(pieces),
    }  # fmt: skip


def begin_rule(settings: TextSettings) -> dict[str, Any] | None:
    """The rule that puts BOS before each text; None where texts begin without."""
    if not settings.add_bos or settings.bos_id is None or not settings.bos_token:
        return None
    bos, text = settings.bos_token, {"Sequence": {"id": "A", "type_id": 0}}
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    second = [
        {"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}
    ]  # fmt: skip
    return {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, *second],
        "special_tokens": {bos: {"id": bos, "ids": [settings.bos_id], "tokens": [bos]}},
    }


def _added(pieces: Pieces) -> list[dict[str, Any]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": text, **plain, "special": kind in _SPECIAL}
        for i, (text, kind) in enumerate(zip(pieces.texts, pieces.types, strict=True))
        if kind in (*_SPECIAL, USER_DEFINED)
    ]


def _normalizer(pieces: Pieces, prefix: str) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    if pieces.rules.charsmap:
        charsmap = base64.b64encode(pieces.rules.charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if pieces.rules.merges_spaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        runs = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
        steps.append(runs)
    if prefix == "always":  # also where there is a space: a Metaspace would add none
        steps.append({"type": "Prepend", "prepend": SPACE})
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _bpe(pieces: Pieces) -> dict[str, Any]:
    vocabulary = {text: i for i, text in enumerate(pieces.texts)}
    return {
        "type": "BPE", "dropout": None, "unk_token": pieces.texts[pieces.unknown],
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
        "byte_fallback": True, "ignore_merges": False, "vocab": vocabulary,
        "merges": _merges(pieces, vocabulary),
    }  # fmt: skip


def _merges(pieces: Pieces, vocabulary: Mapping[str, int]) -> list[list[str]]:
    """Pairs of pieces that make a piece, the highest score first.

    SentencePiece merges the two neighbours whose whole has the highest score, whatever they are.
    """
    found: list[tuple[float, int, int, list[str]]] = []
    for text, i in vocabulary.items():
        if i >= pieces.count or pieces.types[i] in (*_SPECIAL, USER_DEFINED):
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocabulary and right in vocabulary:
                found.append(
                    (-pieces.scores[i], vocabulary[left], vocabulary[right], [left, right])
                )
    return [pair for *_, pair in sorted(found, key=lambda each: each[:3])]


def _unigram(pieces: Pieces) -> dict[str, Any]:
    return {
        "type": "Unigram", "unk_id": pieces.unknown, "byte_fallback": True,
        "vocab": [[text, score] for text, score in zip(pieces.texts, pieces.scores, strict=True)],
    }  # fmt: skip
