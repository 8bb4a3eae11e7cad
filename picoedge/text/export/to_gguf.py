"""A pack's tokenizer and chat template as the key-values of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from picoedge.errors import UnsupportedError
from picoedge.files import read_json_file, read_text_file
from picoedge.text.export.pieces import read_pieces
from picoedge.text.export.pretokenizers import pretokenizer_name
from picoedge.text.export.sentencepiece_proto import CONTROL, NORMAL, UNUSED, USER_DEFINED
from picoedge.text.template.template import TEMPLATE_FILE
from picoedge.text.tokenizer.base import JSON_FILE, MOST_JSON_VALUES, TextSettings

_PREFIX = "tokenizer.ggml."
_END_KEYS = ("eos", "eot", "eom")
_REMEDY = "export it to Hugging Face: --to hf"


def gguf_text_values(pack: Path, vocab_size: int) -> dict[str, Any]:
    """The key-values, for an embedding of `vocab_size` rows.

    Raises TextError where the pack's files are damaged, UnsupportedError where GGUF has no name for
    the tokenizer's rules.
    """
    settings = TextSettings.read(pack)
    if (pack / JSON_FILE).exists():
        rules = read_json_file(pack / JSON_FILE, MOST_JSON_VALUES)
        values = _byte_level(rules, settings, vocab_size)
    else:
        values = _sentencepiece(pack, settings, vocab_size)
    values |= _ids(settings)
    template = pack / TEMPLATE_FILE
    named = {f"{_PREFIX}{key}": value for key, value in values.items()}
    if template.exists():
        named["tokenizer.chat_template"] = read_text_file(template)
    return named


def _sentencepiece(pack: Path, settings: TextSettings, vocab_size: int) -> dict[str, Any]:
    pieces = read_pieces(pack, settings, vocab_size)
    if not pieces.rules.is_bpe:
        raise UnsupportedError("a unigram tokenizer cannot be exported to GGUF", _REMEDY)
    return {
        "model": "llama",
        "pre": "default",
        "tokens": pieces.texts,
        "scores": pieces.scores,
        "token_type": pieces.types,
        "unknown_token_id": pieces.unknown,
        "add_space_prefix": settings.space_prefix != "never",
    }


def _byte_level(
    values: Mapping[str, Any], settings: TextSettings, vocab_size: int
) -> dict[str, Any]:
    """Of a tokenizer.json: byte-level BPE whose rules have a name."""
    model = values.get("model") or {}
    name = pretokenizer_name(values.get("pre_tokenizer"), values.get("normalizer"))
    if model.get("type") != "BPE" or name is None:
        raise UnsupportedError("the rules of this tokenizer have no name in GGUF files", _REMEDY)
    tokens = [f"[UNUSED_{i}]" for i in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for text, i in model["vocab"].items():
        if i < vocab_size:
            tokens[i], types[i] = text, NORMAL
    for token in values.get("added_tokens") or ():
        i = token["id"]
        if i < vocab_size:
            special = token["special"] or i in settings.eos_ids | settings.special_ids
            tokens[i], types[i] = token["content"], CONTROL if special else USER_DEFINED
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    if not merges:
        raise UnsupportedError("a tokenizer of bytes alone cannot be exported to GGUF", _REMEDY)
    return {
        "model": "gpt2", "pre": name, "tokens": tokens, "token_type": types, "merges": merges
    }  # fmt: skip


def _ids(settings: TextSettings) -> dict[str, Any]:
    """Tokens that begin and end texts: `eot` is another that ends a turn."""
    values: dict[str, Any] = {"add_bos_token": settings.add_bos, "add_eos_token": False}
    if settings.bos_id is not None:
        values["bos_token_id"] = settings.bos_id
    ends = sorted(settings.eos_ids, key=lambda i: (_text(settings, i) != settings.eos_token, i))
    values |= {f"{key}_token_id": i for key, i in zip(_END_KEYS, ends, strict=False)}
    return values


def _text(settings: TextSettings, token: int) -> str | None:
    return settings.added[token].text if token in settings.added else None
