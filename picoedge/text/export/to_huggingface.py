"""Tokenizer, chat template and generation settings of a pack as files of a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from picoedge.errors import TextError
from picoedge.files import read_json_file, read_text_file, storing
from picoedge.text.export.pieces import read_pieces
from picoedge.text.export.tokenizer_json import begin_rule, tokenizer_json
from picoedge.text.template.template import TEMPLATE_FILE
from picoedge.text.tokenizer.base import (
    JSON_FILE,
    MOST_JSON_VALUES,
    SENTENCEPIECE_FILE,
    SETTINGS_FILE,
    TextSettings,
)
from picoedge.text.tokenizer.load import load_tokenizer, load_tokenizer_json

_SAMPLING = {"repeat_penalty": "repetition_penalty"}  # names of ours that `transformers` lacks
# What tokenizers differ in first: spaces, lines, digits, bytes, special names.
_PROBES = (
    "", "a", " a", "a b  c", "Hello, world!\n\n  def f(x):\n\treturn x ** 2", "1234 5 67",
    "café – 日本 🙂", "it's \r\n   ", "<s>x</s> y", "ﬁ ½ ①",
)  # fmt: skip


def write_huggingface_text(
    pack: Path, folder: Path, vocab_size: int, sampling: Mapping[str, float], context: int
) -> list[str]:
    """Write the text's files of the pack into `folder`; returns warnings.

    Raises TextError where the pack's files are damaged, StorageError where the disk fails.
    """
    settings, warnings = TextSettings.read(pack), list[str]()
    with storing(folder):
        is_fast = True
        if (pack / JSON_FILE).exists():
            _write_json(pack, folder, settings)
        else:
            shutil.copyfile(pack / SENTENCEPIECE_FILE, folder / SENTENCEPIECE_FILE)
            values = tokenizer_json(read_pieces(pack, settings, vocab_size), settings)
            _write(folder / JSON_FILE, values)
            is_fast = _agree(pack, folder)
            if not is_fast:
                (folder / JSON_FILE).unlink()
                warnings.append(
                    f"the tokenizer is exported as {SENTENCEPIECE_FILE} alone: its rules have no "
                    f"equal in {JSON_FILE}"
                )
        template = _template(pack)
        values = _tokenizer_config(settings, context, template, is_fast=is_fast)
        _write(folder / SETTINGS_FILE, values)
        _write(folder / "generation_config.json", _generation(settings, sampling))
        if template is not None:
            (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    return warnings


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _template(pack: Path) -> str | None:
    path = pack / TEMPLATE_FILE
    return read_text_file(path) if path.exists() else None


def _write_json(pack: Path, folder: Path, settings: TextSettings) -> None:
    """The pack's file; where its own rules do not put BOS before a text, with a rule that does."""
    begins = load_tokenizer_json(pack / JSON_FILE).encode("").ids[:1] == [settings.bos_id]
    rule = begin_rule(settings)
    if begins or rule is None:
        shutil.copyfile(pack / JSON_FILE, folder / JSON_FILE)
        return
    values = read_json_file(pack / JSON_FILE, MOST_JSON_VALUES)
    _write(folder / JSON_FILE, {**values, "post_processor": rule})


def _agree(pack: Path, folder: Path) -> bool:
    """Whether the folder's tokenizer.json gives the ids of the pack's tokenizer."""
    ours = load_tokenizer(pack)
    try:
        theirs = load_tokenizer_json(folder / JSON_FILE)
    except TextError:
        return False
    return all(
        theirs.encode(text, add_special_tokens=False).ids == ours.encode(text, add_bos=False)
        for text in _PROBES
    )


def _tokenizer_config(
    settings: TextSettings, context: int, template: str | None, *, is_fast: bool
) -> dict[str, Any]:
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast" if is_fast else "LlamaTokenizer",
        "model_max_length": context,
        "add_bos_token": settings.add_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": settings.space_prefix == "always",
    }
    named = {"bos_token": settings.bos_token, "eos_token": settings.eos_token}
    values |= {name: text for name, text in named.items() if text}
    if template is not None:  # older versions read no file of its own
        values["chat_template"] = template
    return values


def _generation(settings: TextSettings, sampling: Mapping[str, float]) -> dict[str, Any]:
    values: dict[str, Any] = {_SAMPLING.get(name, name): value for name, value in sampling.items()}
    if sampling:
        values["do_sample"] = sampling.get("temperature", 1.0) > 0
    if settings.bos_id is not None:
        values["bos_token_id"] = settings.bos_id
    if settings.eos_ids:
        values["eos_token_id"] = sorted(settings.eos_ids)
    return values
