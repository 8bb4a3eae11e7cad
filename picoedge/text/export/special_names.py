"""Names of special tokens that a chat template writes: each must be one token to the model.

Exporters type them as they like: `<start_of_turn>` as plain text is cut into seven pieces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from picoedge.errors import TextError
from picoedge.text.template.template import ChatTemplate

_NAME = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z][A-Z_]{0,30}\]")
_CONTROL = re.compile(
    r"<[|｜].*>|<.*[|｜]>|</?s>|<(bos|eos|pad|unk|(start|end|begin)_of_\w+)>"
    r"|\[/?[A-Z][A-Z_]*\]"
)
_ANSWER = "zqxanswerxqz"
_TALK = [
    {"role": "system", "content": "0"},
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": "3"},
]


@dataclass(frozen=True)
class WrittenNames:
    """What looks like a token's name: `turns` in a rendered conversation, `others` elsewhere.

    `answer_end`: the one that follows an answer, "" where none does.
    """

    turns: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    answer_end: str = ""


def written_names(source: str | None, bos_token: str = "", eos_token: str = "") -> WrittenNames:
    """Names that the template `source` writes. A template that fails writes none."""
    if not source:
        return WrittenNames()
    try:
        template = ChatTemplate(source, bos_token=bos_token, eos_token=eos_token)
        literals = frozenset(_NAME.findall(template.literals()))
    except TextError:
        return WrittenNames()
    turns: set[str] = set()
    end = ""
    for talk in (_TALK, _TALK[1:], _TALK[:2], _TALK[1:2]):
        try:
            text = template.render(template.probe().arrange(talk))
        except TextError:
            continue
        turns.update(_NAME.findall(text))
        if match := _NAME.match(text.partition(_ANSWER)[2].lstrip()):
            end = end or match[0]
    return WrittenNames(frozenset(turns), literals - turns, end)


def looks_like_control(name: str) -> bool:
    """Whether a token of this name is no text: `<|im_end|>` and `[INST]`, not `<think>`."""
    return _CONTROL.fullmatch(name) is not None


def is_token_name(name: str) -> bool:
    """Whether a name can only be a token's: `[INST]` may be text to a model."""
    return looks_like_control(name) and name.startswith("<")
