"""The pre-tokenizer of a GGUF that names none, recognised by its vocabulary.

Files of before May 2024 name none. A tokenizer is trained on the words that its pre-tokenizer cuts,
so that the vocabulary shows what those were: no token has two digits where each is a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

# (a token, its id, the pre-tokenizer); the first that fits counts.
_LANDMARKS = (
    ("<|begin_of_text|>", 128000, "llama-bpe"),
    ("<｜begin▁of▁sentence｜>", 128000, "llama-bpe"),
    ("<｜begin▁of▁sentence｜>", 151646, "deepseek-r1-qwen"),
    ("<｜begin▁of▁sentence｜>", 100000, "deepseek-llm"),
    ("<｜begin▁of▁sentence｜>", 32013, "deepseek-coder"),
    ("<｜begin▁of▁sentence｜>", 0, "deepseek-v3"),
    ("<|endoftext|>", 151643, "qwen2"),
    ("<|endoftext|>", 199999, "gpt-4o"),
    ("<|endoftext|>", 151329, "glm4"),
    ("<|endoftext|>", 50256, "gpt-2"),
    ("<|padding|>", 1, "olmo"),
    ("<fim_prefix>", 1, "starcoder"),
    ("<repo_name>", 3, "smollm"),
    ("[INST]", 3, "tekken"),
    ("<BOS_TOKEN>", 5, "command-r"),
)
_ENOUGH = 1000  # tokens; fewer show nothing
_DIGITS = re.compile("Ġ?([0-9]+)")
_SHOUT = re.compile("Ġ?[A-Za-z]*[a-z][A-Z][A-Za-z]*")  # camelCase
_STOPS = re.compile(r"[.,;:)}\]]+Ċ+")


def recognise(tokens: Sequence[str]) -> tuple[str, bool]:
    """Name of the pre-tokenizer, and whether it is certain."""
    for text, i, name in _LANDMARKS:
        if i < len(tokens) and tokens[i] == text:
            return name, True
    if len(tokens) < _ENOUGH:
        return "default", False
    return _by_words(tokens), False


def _by_words(tokens: Iterable[str]) -> str:
    """The nearest of the common ones, by which words are tokens."""
    digits, camel, stops = 0, 0, 0
    for text in tokens:
        if match := _DIGITS.fullmatch(text):
            digits = max(digits, len(match[1]))
        camel += _SHOUT.fullmatch(text) is not None
        stops += _STOPS.fullmatch(text) is not None
    if not stops:  # line ends are words of their own
        return "smollm" if digits == 1 else "gpt-2"
    by_digits: Mapping[bool, str] = {True: "stablelm2", False: "dbrx"}
    if not camel:
        by_digits = {True: "tekken", False: "gpt-4o"}
    return by_digits[digits == 1]
