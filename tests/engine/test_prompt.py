"""Prompts: refusals before encoding, and the prompt of a model without a template."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_model import ByteTokenizer, prompter_for, scripted_session

from picoedge.engine.session import Prompter
from picoedge.errors import ContextError, TextError


class CountingTokenizer(ByteTokenizer):
    """Notes how many characters it was given; `per_token` characters make a token."""

    def __init__(self, per_token: int = 1) -> None:
        self.per_token, self.lengths = per_token, list[int]()

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = True) -> list[int]:
        self.lengths.append(len(text))
        return [1] * (len(text) // self.per_token)


@pytest.fixture
def prompter() -> Prompter:
    return prompter_for(scripted_session("abc", n_ctx=100))


def test_a_prompt_of_megabytes_is_refused_without_encoding_it(prompter: Prompter) -> None:
    tokenizer = CountingTokenizer()
    counting = replace(prompter, tokenizer=tokenizer)
    with pytest.raises(ContextError, match=r"about \d+ tokens, the context 100"):
        counting.encode("x" * 10_000_000)
    assert sum(tokenizer.lengths) < 10_000
    with pytest.raises(ContextError, match=r"about \d+ tokens, the context 100"):
        prompter.chat_ids([{"role": "user", "content": "x" * 10_000_000}])


def test_long_text_of_few_tokens_is_encoded_whole(prompter: Prompter) -> None:
    counting = replace(prompter, tokenizer=CountingTokenizer(per_token=1000))
    assert len(counting.encode("x" * 50_000)) == 50


def test_chat_without_a_template_says_what_to_do(prompter: Prompter) -> None:
    with pytest.raises(TextError, match="no chat template") as caught:
        replace(prompter, template=None).chat_ids([{"role": "user", "content": "hi"}])
    assert "--raw" in caught.value.hint
