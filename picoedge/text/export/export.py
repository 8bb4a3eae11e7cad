"""Export a source's tokenizer and chat template into a pack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from picoedge.text.export import from_gguf, from_huggingface
from picoedge.text.export.gguf_vocabulary import text_value
from picoedge.text.files import read_json_if_any, storing
from picoedge.text.template.fallback import fallback_template
from picoedge.text.template.template import TEMPLATE_FILE
from picoedge.text.tokenizer.base import Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer


def write_from_gguf(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer, settings and chat template from a GGUF's key-values into `folder`.

    The tokenizer is loaded once as a check. Raises TextError where the metadata is damaged or of
    an unsupported kind, StorageError where the disk fails.
    """
    with storing(folder):
        from_gguf.write_gguf_tokenizer(metadata, folder).write(folder)
    template = text_value(metadata, "tokenizer.chat_template")
    architecture = text_value(metadata, "general.architecture") or ""
    _write_template(folder, template, architecture)


def write_from_huggingface(source_folder: Path, folder: Path) -> None:
    """Write tokenizer, settings and chat template from a Hugging Face folder into `folder`.

    Raises TextError where files are missing, damaged or of an unsupported kind, StorageError
    where the disk fails.
    """
    with storing(folder):
        from_huggingface.write_folder_tokenizer(source_folder, folder).write(folder)
    template = from_huggingface.find_template(source_folder)
    model_type = read_json_if_any(source_folder / "config.json").get("model_type")
    _write_template(folder, template, str(model_type))


def _write_template(folder: Path, template: str | None, architecture: str) -> None:
    tokenizer = load_tokenizer(folder)
    template = template or fallback_template(architecture, lambda text: _has(tokenizer, text))
    if template is not None:
        with storing(folder):
            (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")


def _has(tokenizer: Tokenizer, text: str) -> bool:
    ids = tokenizer.encode(text, add_bos=False)
    return len(ids) == 1 and tokenizer.is_special(ids[0])
