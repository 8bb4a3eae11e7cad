"""A conversation to token ids, with what people typed kept apart from what steers the model."""

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
    """Stand-ins, one character each, for what must reach the model as plain text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokens = tokenizer.special_tokens
        self._names = {i: name for name, i in self._tokens.ids.items()}
        self._numbers: dict[str, int] = {}

    def hide(self, value: Any) -> Any:
        """`value` (as in JSON) with the names of special tokens in its texts replaced."""
        if isinstance(value, str):
            # Characters that look like marks are hidden too: afterwards every mark is ours.
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
        """What each mark stands for."""
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
    """Ids of a conversation, BOS once where the model wants it.

    A special token's name is that token where the template writes it, and plain text where a
    message does: nobody can end their turn and speak as someone else by typing `<|im_end|>`.
    Raises TextError as `ChatTemplate.render`.
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
