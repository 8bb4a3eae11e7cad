"""Export a source's tokenizer and chat template into a pack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from picoedge.files import read_json_if_any, storing
from picoedge.text.export import from_gguf, from_huggingface
from picoedge.text.export.from_gguf import text_value
from picoedge.text.template.template import TEMPLATE_FILE
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

    def has_token(text: str) -> bool:
        ids = tokenizer.encode(text, add_bos=False)
        return len(ids) == 1 and tokenizer.is_special(ids[0])

    template = template or fallback_template(architecture, has_token)
    if template is not None:
        with storing(folder):
            (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
