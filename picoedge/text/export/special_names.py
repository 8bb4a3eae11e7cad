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
    r"<[|｜].*>|<.*[|｜]>|</?s>|<(bos|eos|pad|unk|(start|end|begin|beginning)_of_\w+)>"
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
    """Words that look like tokens' names: `turns` in a rendered conversation, `others` elsewhere.

    `after_answer`: those that follow an answer, in order.
    """

    turns: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    after_answer: tuple[str, ...] = ()

    def is_control(self, name: str) -> bool:
        """Whether a token of this name is no text: `<|im_end|>` and `<sep>`, not `<think>`."""
        if _CONTROL.fullmatch(name):
            return True
        # A pair of opening and closing names encloses text of an answer or a prompt.
        paired = f"</{name[1:]}" if not name.startswith("</") else f"<{name[2:]}"
        written = self.turns | self.others
        return name in self.turns and paired not in written and "think" not in name


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
    after: list[str] = []
    for talk in (_TALK, _TALK[1:], _TALK[:2], _TALK[1:2]):
        try:
            text = template.render(template.probe().arrange(talk))
        except TextError:
            continue
        turns.update(_NAME.findall(text))
        rest = text.partition(_ANSWER)[2].lstrip()
        if not after and _NAME.match(rest):
            after = _NAME.findall(rest)
    return WrittenNames(frozenset(turns), literals - turns, tuple(after))


def looks_like_control(name: str) -> bool:
    """Whether a name is a control token's wherever it stands: `<|im_end|>`, `[INST]`, `</s>`."""
    return _CONTROL.fullmatch(name) is not None


def is_token_name(name: str) -> bool:
    """Whether a name can only be a token's: `[INST]` may be text to a model."""
    return looks_like_control(name) and name.startswith("<")
