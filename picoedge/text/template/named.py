"""Chat templates by name, for models whose files have none.

Where a format has no place for a system message, the template has none either: the probe then puts
it before the first question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORDS = {"CONTENT": "m.content | trim", "BOS": "bos_token", "EOS": "eos_token"}
_SPLIT = re.compile("(CONTENT|BOS|EOS)")


@dataclass(frozen=True)
class TurnFormat:
    """The text of each kind of message, and `opening`, with which the model's next answer begins.

    CONTENT stands for the message's text, BOS and EOS for the model's own tokens.
    """

    user: str
    assistant: str
    opening: str
    system: str = ""  # "": there is no place for it
    before: str = ""  # the first message

    def source(self) -> str:
        """The template in Jinja."""
        system = f"m.role == 'system' -%}}{{{{ {_joined(self.system)} }}}}{{%- elif "
        return (
            f"{{{{ {_joined(self.before)} }}}}{{%- for m in messages -%}}"
            f"{{%- if {system if self.system else ''}"
            f"m.role == 'user' -%}}{{{{ {_joined(self.user)} }}}}"
            f"{{%- elif m.role == 'assistant' -%}}{{{{ {_joined(self.assistant)} }}}}"
            "{%- else -%}{{ raise_exception('no place for role ' ~ m.role) }}{%- endif -%}"
            "{%- endfor -%}"
            f"{{%- if add_generation_prompt -%}}{{{{ {_joined(self.opening)} }}}}{{%- endif -%}}"
        )


def _joined(text: str) -> str:
    """An expression of Jinja for a text of a format."""
    parts = [_WORDS.get(part) or repr(part) for part in _SPLIT.split(text) if part]
    return " ~ ".join(f"({part})" for part in parts) or "''"


def _headed(head: str, end: str, before: str = "", assistant: str = "assistant") -> TurnFormat:
    """A format whose turns all look alike: ROLE in `head`, the text, `end`."""
    texts = [head.replace("ROLE", role) + "CONTENT" + end for role in ("user", assistant, "system")]
    return TurnFormat(texts[0], texts[1], head.replace("ROLE", assistant), texts[2], before)


_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
)
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
_COMMAND = "<|START_OF_TURN_TOKEN|><|ROLE_TOKEN|>CONTENT<|END_OF_TURN_TOKEN|>"

_LLAMA2 = """\
{%- set ns = namespace(before='') -%}
{%- for m in messages -%}
    {%- if m.role == 'system' -%}
        {%- set ns.before = '<<SYS>>\\n' ~ m.content | trim ~ '\\n<</SYS>>\\n\\n' -%}
    {%- elif m.role == 'user' -%}
        {{- bos_token ~ '[INST] ' ~ ns.before ~ m.content | trim ~ ' [/INST]' -}}
        {%- set ns.before = '' -%}
    {%- elif m.role == 'assistant' -%}
        {{- ' ' ~ m.content | trim ~ ' ' ~ eos_token -}}
    {%- else -%}
        {{- raise_exception('no place for role ' ~ m.role) -}}
    {%- endif -%}
{%- endfor -%}
"""

_FORMATS: dict[str, TurnFormat] = {
    "alpaca": TurnFormat(
        "### Instruction:\nCONTENT\n\n", "### Response:\nCONTENT\n\n", "### Response:\n",
        before=_ALPACA,
    ),
    "chatml": _headed("<|im_start|>ROLE\n", "<|im_end|>\n"),
    "command-r": TurnFormat(
        _COMMAND.replace("ROLE", "USER"), _COMMAND.replace("ROLE", "CHATBOT"),
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", _COMMAND.replace("ROLE", "SYSTEM"),
        before="BOS",
    ),
    "deepseek": TurnFormat(
        "User: CONTENT\n\n", "Assistant: CONTENTEOS", "Assistant:", "CONTENT\n\n", before="BOS"
    ),
    "gemma": TurnFormat(
        "<start_of_turn>user\nCONTENT<end_of_turn>\n",
        "<start_of_turn>model\nCONTENT<end_of_turn>\n",
        "<start_of_turn>model\n", before="BOS",
    ),
    "llama3": _headed("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>", "BOS"),
    "mistral": TurnFormat("[INST] CONTENT [/INST]", " CONTENTEOS", "", before="BOS"),
    "openchat": TurnFormat(
        "GPT4 Correct User: CONTENT<|end_of_turn|>",
        "GPT4 Correct Assistant: CONTENT<|end_of_turn|>",
        "GPT4 Correct Assistant:", "CONTENT<|end_of_turn|>", before="BOS",
    ),
    "phi3": _headed("<|ROLE|>\n", "<|end|>\n"),
    "phi4": _headed("<|im_start|>ROLE<|im_sep|>", "<|im_end|>"),
    "vicuna": TurnFormat(
        "USER: CONTENT ", "ASSISTANT: CONTENTEOS", "ASSISTANT:", "CONTENT ", before="BOS" + _VICUNA
    ),
    "zephyr": _headed("<|ROLE|>\n", "EOS\n"),
}  # fmt: skip

TEMPLATES = {"llama2": _LLAMA2} | {name: form.source() for name, form in _FORMATS.items()}
"""Jinja source by name"""
