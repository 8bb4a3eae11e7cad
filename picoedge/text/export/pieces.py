"""The pieces of a pack's SentencePiece model, as other programs' files list them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from picoedge.text.export.sentencepiece_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    ModelRules,
    read_rules,
)
from picoedge.text.tokenizer.base import SENTENCEPIECE_FILE, TextSettings
from picoedge.text.tokenizer.load import load_sentencepiece

_UNUSED_SCORE = -10_000.0


@dataclass(frozen=True)
class Pieces:
    """Texts, scores and types of all tokens, by id; `count` of them are the model's own."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    count: int
    unknown: int
    rules: ModelRules


def read_pieces(folder: Path, settings: TextSettings, vocab_size: int) -> Pieces:
    """The tokens of the pack `folder`, filled up to `vocab_size` with unused ones.

    Raises TextError where the model is damaged or of an unsupported kind.
    """
    path = folder / SENTENCEPIECE_FILE
    model = load_sentencepiece(path, "the file is damaged: pack the model again")
    rules = read_rules(path.read_bytes())
    count = min(int(model.vocab_size()), vocab_size)
    texts = [str(model.id_to_piece(i)) for i in range(count)]
    scores = [float(model.get_score(i)) for i in range(count)]
    types = [
        UNKNOWN if model.is_unknown(i) else CONTROL if model.is_control(i)
        else BYTE if model.is_byte(i) else UNUSED if model.is_unused(i) else NORMAL
        for i in range(count)
    ]  # fmt: skip
    for i in range(count, vocab_size):
        texts.append(f"[UNUSED_{i}]")
        scores.append(_UNUSED_SCORE)
        types.append(UNUSED)
    for i, token in settings.added.items():
        if i < vocab_size and types[i] != UNKNOWN:
            special = token.special or i in settings.special_ids
            texts[i], types[i] = token.text, CONTROL if special else USER_DEFINED
    return Pieces(texts, scores, types, count, int(model.unk_id()), rules)
