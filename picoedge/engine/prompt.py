"""From what a user writes to the tokens a model is asked with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from picoedge.errors import ContextError, TextError
from picoedge.text.template.chat import encode_chat

if TYPE_CHECKING:
    from picoedge.text.template.template import ChatTemplate
    from picoedge.text.tokenizer.base import Tokenizer

LONG_TOKEN = 16  # characters; a text seldom has fewer than n / 16 tokens


@dataclass(frozen=True)
class Prompt:
    """What a model is asked with. `continues`: the answer goes on from the prompt's own text."""

    ids: list[int]
    continues: bool = False


@dataclass(frozen=True)
class Prompter:
    """Prompts for a model called `name` whose context has `n_ctx` positions."""

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate | None
    n_ctx: int

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """The prompt that asks for the next message. Raises TextError, ContextError.

        What a message says is text, also where it spells a special token.
        """
        template = self.require_template()
        self._refuse_far_too_long("\n".join(message["content"] for message in messages))
        return encode_chat(template, self.tokenizer, messages)

    def require_template(self) -> ChatTemplate:
        """The chat template. Raises TextError where the model has none."""
        if self.template is None:
            raise TextError(
                f"{self.name} has no chat template", "complete plain text: picoedge generate --raw"
            )
        return self.template

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt. Raises ContextError for one far too long."""
        self._refuse_far_too_long(text)
        return self.tokenizer.encode(text)

    def _refuse_far_too_long(self, text: str) -> None:
        """Before all of it is encoded: megabytes would take gigabytes, only to be refused."""
        limit = self.n_ctx * LONG_TOKEN
        while len(text) > limit:
            count = len(self.tokenizer.encode(text[:limit]))
            if count > self.n_ctx + LONG_TOKEN:  # where it was cut it may have a few too many
                raise _too_long(f"about {count * len(text) // limit}", self.n_ctx)
            limit *= 4


def check_prompt(prompt: list[int], n_ctx: int) -> None:
    """Refuse a prompt that leaves no room for a token. Raises TextError, ContextError."""
    if not prompt:
        raise TextError("the prompt is empty", "write something")
    if len(prompt) >= n_ctx:
        raise _too_long(str(len(prompt)), n_ctx)


def _too_long(count: str, n_ctx: int) -> ContextError:
    return ContextError(
        f"the prompt has {count} tokens, the context {n_ctx}, and an answer needs at least one",
        "take a larger --ctx-size, or a shorter text",
    )
