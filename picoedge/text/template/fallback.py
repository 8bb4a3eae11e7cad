"""Chat templates for models without one, chosen by architecture and special tokens."""

from __future__ import annotations

from collections.abc import Callable

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
