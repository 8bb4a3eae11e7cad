"""Export a source's tokenizer and chat template into a pack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from picoedge.files import read_json_if_any, storing
from picoedge.text.export import from_gguf, from_huggingface
from picoedge.text.export.special_names import WrittenNames, is_token_name, written_names
from picoedge.text.export.vocabulary import text_value, texts
from picoedge.text.template.template import TEMPLATE_FILE
from picoedge.text.tokenizer.base import TextSettings, Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer

_GEMMA = """\
{{ bos_token }}
{%- set ns = namespace(before='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set ns.before = message['content'] ~ '\\n\\n' %}
    {%- else %}
        {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
        {{- '<start_of_turn>' ~ role ~ '\\n' ~ ns.before ~ message['content'] | trim }}
        {{- '<end_of_turn>\\n' }}
        {%- set ns.before = '' %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""

_CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_LLAMA3 = """\
{{ bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# architecture -> (tokens that the template writes, template); the first with all tokens is taken
_FAMILIES = {
    "gemma": ((("<start_of_turn>", "<end_of_turn>"), _GEMMA),),
    "qwen": ((("<|im_start|>", "<|im_end|>"), _CHATML),),
    "llama": (
        (("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), _LLAMA3),
        (("<|im_start|>", "<|im_end|>"), _CHATML),
    ),
}


def fallback_template(architecture: str, has_token: Callable[[str], bool]) -> str | None:
    """Template of the architecture's family, if the vocabulary has the tokens that it writes."""
    for family, candidates in _FAMILIES.items():
        if architecture.startswith(family):
            for needed, template in candidates:
                if all(map(has_token, needed)):
                    return template
    return None


def write_from_gguf(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer, settings and chat template from a GGUF's key-values into `folder`.

    The tokenizer is loaded once as a check. Raises TextError where the metadata is damaged or of
    an unsupported kind, StorageError where the disk fails.
    """
    template = text_value(metadata, "tokenizer.chat_template") or _template_by_tokens(metadata)
    with storing(folder):
        names = written_names(template)
        settings = from_gguf.write_gguf_tokenizer(metadata, folder, names)
        settings.write(folder)
    _write_template(folder, template, settings)


def _template_by_tokens(metadata: Mapping[str, Any]) -> str | None:
    """See `fallback_template`. Tokens of a large vocabulary are 20 MB: they are kept no longer."""
    architecture = text_value(metadata, "general.architecture") or ""
    return fallback_template(architecture, frozenset(texts(metadata, "tokens")).__contains__)


def write_from_huggingface(source_folder: Path, folder: Path) -> None:
    """Write tokenizer, settings and chat template from a Hugging Face folder into `folder`.

    Raises TextError where files are missing, damaged or of an unsupported kind, StorageError
    where the disk fails.
    """
    with storing(folder):
        settings = from_huggingface.write_folder_tokenizer(source_folder, folder)
        settings.write(folder)
    template = from_huggingface.find_template(source_folder)
    if not template:
        model_type = read_json_if_any(source_folder / "config.json").get("model_type")
        tokenizer = load_tokenizer(folder)
        template = fallback_template(
            str(model_type), lambda text: len(tokenizer.encode(text, add_bos=False)) == 1
        )
    _write_template(folder, template, settings)


def _write_template(folder: Path, template: str | None, settings: TextSettings) -> None:
    """Write the template, and into the settings its warnings."""
    tokenizer = load_tokenizer(folder)
    if not template:
        return
    names = written_names(template, settings.bos_token, settings.eos_token)
    control, cut = _control_tokens(names, tokenizer)
    told = replace(
        settings,
        eos_ids=settings.eos_ids | _ends_by_template(names, control, tokenizer.eos_ids),
        special_ids=frozenset(i for i in control.values() if not tokenizer.is_special(i)),
        notes=(*settings.notes, *_notes(cut)),
    )
    with storing(folder):
        (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
        if told != settings:
            told.write(folder)


def _control_tokens(names: WrittenNames, tokenizer: Tokenizer) -> tuple[dict[str, int], list[str]]:
    """Control tokens that the template puts between turns, by name; those that are no token."""
    ids = {
        name: tokenizer.encode(name, add_bos=False)
        for name in sorted(names.turns)
        if names.is_control(name)
    }
    control = {name: found[0] for name, found in ids.items() if len(found) == 1}
    return control, [name for name in ids if name not in control and is_token_name(name)]


def _ends_by_template(
    names: WrittenNames, control: Mapping[str, int], eos_ids: frozenset[int]
) -> frozenset[int]:
    """The token that the template puts behind an answer, where no other after it ends one."""
    if any(control.get(name) in eos_ids for name in names.after_answer):
        return frozenset()
    end = control.get(names.after_answer[0]) if names.after_answer else None
    return frozenset(() if end is None else (end,))


def _notes(cut: list[str]) -> list[str]:
    """Notes on names in the template that look like tokens and are none."""
    if not cut:
        return []
    what = ", ".join(cut[:8])
    return [f"the chat template writes {what}, which the vocabulary has not: read as text"]
