"""Load the tokenizer of a pack: a `tokenizer.json` or a SentencePiece model."""

from __future__ import annotations

from pathlib import Path

from picoedge.errors import TextError
from picoedge.text.tokenizer.base import JSON_FILE, SENTENCEPIECE_FILE, TextSettings, Tokenizer
from picoedge.text.tokenizer.hf_json import JsonTokenizer
from picoedge.text.tokenizer.sentencepiece import SentencePieceTokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a pack. Raises TextError where its files are missing or damaged."""
    if (folder / JSON_FILE).exists():
        return JsonTokenizer(folder / JSON_FILE, TextSettings.read(folder))
    if (folder / SENTENCEPIECE_FILE).exists():
        return SentencePieceTokenizer(folder / SENTENCEPIECE_FILE, TextSettings.read(folder))
    raise TextError(
        f"{folder} has no tokenizer ({JSON_FILE} or {SENTENCEPIECE_FILE})", "pack the model again"
    )
