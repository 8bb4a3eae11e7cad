"""Encode a conversation, so that text in messages cannot become control tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from picoedge.errors import TextError
from picoedge.text.template.template import ChatTemplate
from picoedge.text.tokenizer.base import Tokenizer

_FIRST_MARK, _LAST_MARK = 0xF0000, 0x10FFFF  # the private-use planes of Unicode
_MARK = re.compile(f"([{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}])")


class _Marks:
    """One-character placeholders for text that must reach the model as plain text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokens = tokenizer.special_tokens
        self._names = {i: name for name, i in self._tokens.ids.items()}
        self._numbers: dict[str, int] = {}

    def hide(self, value: Any) -> Any:
        """`value` (as in JSON) with the names of special tokens replaced by marks."""
        if isinstance(value, str):
            # Characters that look like marks are replaced too, so that every mark is ours.
            parts = _MARK.sub(lambda found: self._mark(found[0]), value)
            return "".join(
                part if isinstance(part, str) else self._mark(self._names[part])
                for part in self._tokens.split(parts)
            )
        if isinstance(value, Mapping):
            return {key: self.hide(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(item) for item in value]
        return value

    def plain(self) -> list[str]:
        """Text of each mark, by number."""
        return list(self._numbers)

    def _mark(self, text: str) -> str:
        number = self._numbers.setdefault(text, len(self._numbers))
        if number > _LAST_MARK - _FIRST_MARK:
            raise TextError("the messages hold too many private-use characters")
        return chr(_FIRST_MARK + number)


def encode_chat(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Ids of a conversation, with BOS once if the model wants it.

    The name of a special token is that token in the template, but plain text in a message: typing
    `<|im_end|>` does not end the user's turn. Raises TextError as `ChatTemplate.render`.
    """
    marks = _Marks(tokenizer)
    text = template.render(
        [marks.hide(message) for message in messages],
        add_generation_prompt=add_generation_prompt,
        variables=variables,
    )
    ids: list[int] = []
    plain = marks.plain()
    for part in _MARK.split(text):
        mark = ord(part) - _FIRST_MARK if len(part) == 1 else -1
        if 0 <= mark < len(plain):
            ids += tokenizer.encode(plain[mark], add_bos=False, parse_special=False)
        else:
            ids += tokenizer.encode(part, add_bos=False)
    bos = tokenizer.encode("")
    return ids if ids[: len(bos)] == bos else bos + ids
