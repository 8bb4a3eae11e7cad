"""Chat templates by name: each shows every message, and writes what its models were trained on."""

from __future__ import annotations

import pytest
from fake_model import ByteTokenizer

from picoedge.text.template.chosen import end_answers
from picoedge.text.template.named import TEMPLATES
from picoedge.text.template.template import ChatTemplate
from picoedge.text.tokenizer.base import SpecialTokens

TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "Q1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "Q2"},
]
RENDERED = {
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n"
        "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "llama2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST]",
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "<s>[INST] S\n\nQ1 [/INST] A1</s>[INST] Q2 [/INST]",
    "gemma": (
        "<s><start_of_turn>user\nS\n\nQ1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
        "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n"
    ),
    "zephyr": (
        "<|system|>\nS</s>\n<|user|>\nQ1</s>\n<|assistant|>\nA1</s>\n"
        "<|user|>\nQ2</s>\n<|assistant|>\n"
    ),
    "phi3": (
        "<|system|>\nS<|end|>\n<|user|>\nQ1<|end|>\n<|assistant|>\nA1<|end|>\n"
        "<|user|>\nQ2<|end|>\n<|assistant|>\n"
    ),
}


def template(name: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name], bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", RENDERED)
def test_a_template_writes_what_its_models_know(name: str) -> None:
    made = template(name)
    assert made.render(made.probe().arrange(TALK)) == RENDERED[name]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_shows_every_message(name: str) -> None:
    made = template(name)
    facts = made.probe()
    text = made.render(facts.arrange(TALK))
    assert facts.history
    assert [text.count(message["content"]) for message in TALK[1:]] == [1, 1, 1]
    assert text.index("Q1") < text.index("A1") < text.index("Q2")


@pytest.mark.parametrize(
    ("name", "tokens", "ends", "stops"),
    [
        ("chatml", ["<|im_end|>"], {256, 7}, ()),
        ("chatml", [], {256}, ("<|im_end|>",)),
        ("alpaca", [], {256}, ("### Instruction:",)),
        ("llama2", ["</s>"], {256, 7}, ()),
        ("vicuna", [], {256}, ("</s>",)),
    ],
)
def test_an_answer_ends_where_the_template_ends_it(
    name: str, tokens: list[str], ends: set[int], stops: tuple[str, ...]
) -> None:
    tokenizer, made = ByteTokenizer(), template(name)
    tokenizer.special_tokens = SpecialTokens(dict.fromkeys(tokens, 7))
    end_answers(made, tokenizer)  # type: ignore[arg-type]
    assert (tokenizer.eos_ids, made.stops) == (ends, stops)
