"""Chat templates probed: no question, system message or tool is dropped in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from text_models import bpe_metadata

from picoedge.errors import TextError
from picoedge.text.export.export import write_from_gguf
from picoedge.text.template.probe import TemplateFacts
from picoedge.text.template.template import ChatTemplate, encode_chat
from picoedge.text.tokenizer.base import Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer

LOOP = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
# The shape of vision models: a content is a list of parts, and a text is iterated in vain.
PARTS = (
    "{% for m in messages %}{{ m.role | capitalize }}:{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}\n{% endfor %}"
)
PARTS_OF_QUESTIONS = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content[0]['text'] }}"
    "{% else %}{{ m.content + '!' }}{% endif %}{% endfor %}"
)
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}: {{ m.content }}\n"
    "{% endfor %}"
)
DEAF = (
    "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.content | trim }}\n{% endfor %}"
)
# The system message only shows where the first question is also the last.
FADING = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% if loop.last and messages[0].role == 'system' and loop.index == 2 %}"
    "{{ messages[0].content }}\n{% endif %}{{ m.content }}{% elif m.role == 'assistant' %}"
    "{{ m.content }}{% endif %}{% endfor %}"
)
LAST_ALONE = "Translate: {{ messages[-1].content }}"
FIRST_ALONE = "{{ messages[0].content }}"
QWEN = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}" + LOOP + "{%- if "
    "add_generation_prompt %}<a>{% if enable_thinking is defined and enable_thinking is false %}"
    "<think></think>{% endif %}{% endif %}"
)
GRANITE = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    "{% if thinking %}Think first.{% endif %}" + LOOP
)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("bpe")
    write_from_gguf(bpe_metadata(), folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("source", "content", "place", "history", "tools"),
    [
        (LOOP, "string", "own", True, False),
        (PARTS, "parts", "own", True, False),
        (PARTS_OF_QUESTIONS, "parts", "own", True, False),
        (STRICT, "string", "merged", True, False),
        (DEAF, "string", "merged", True, False),
        (FADING, "string", "merged", True, False),
        (LAST_ALONE, "string", "merged", False, False),
        (FIRST_ALONE, "string", "merged", False, False),
        (QWEN, "string", "own", True, True),
        (LOOP.upper().lower().replace("m.content", "m.content | upper"), "string", "own", True, 0),
    ],
)
def test_facts(source: str, content: str, place: str, history: bool, tools: bool) -> None:
    facts = ChatTemplate(source).probe()
    found = (facts.content, facts.system, facts.history, facts.tools)
    assert found == (content, place, history, bool(tools))


@pytest.mark.parametrize("source", [PARTS, PARTS_OF_QUESTIONS, STRICT, DEAF, FADING, LOOP])
def test_everything_said_reaches_the_model(source: str, tokenizer: Tokenizer) -> None:
    talk = [
        system("Be  brief."),
        user("Is π large? <|im_end|>"),
        {"role": "assistant", "content": "No."},
        user("中文?"),
    ]
    template = ChatTemplate(source)
    for messages in (talk, talk[1:], talk[:2], talk[1:2]):
        text = tokenizer.decode(encode_chat(template, tokenizer, messages))
        places = [text.index(m["content"]) for m in messages]
        assert places == sorted(places)


def test_two_questions_are_two_prompts(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(PARTS)
    first, second = (encode_chat(template, tokenizer, [user(text)]) for text in ("A?", "B?"))
    assert first != second


@pytest.mark.parametrize("source", ["Hello.", "{{ messages | length }}", "{{ question }}"])
def test_a_template_that_drops_the_question_is_refused(source: str, tokenizer: Tokenizer) -> None:
    template = ChatTemplate(source)
    with pytest.raises(TextError, match="drops the question") as caught:
        encode_chat(template, tokenizer, [user("What?")])
    assert "--raw" in caught.value.hint


def test_an_error_that_the_template_raises_itself_is_told() -> None:
    with pytest.raises(TextError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").probe()


@pytest.mark.parametrize(
    ("source", "messages", "lost"),
    [
        (FIRST_ALONE, [user("A"), {"role": "assistant", "content": "B"}, user("C")], "question"),
        # Both show in the probe; the outcome depends on the words.
        (
            "{% for m in messages if m.content | length < 50 %}{{ m.content }}{% endfor %}",
            [system("x" * 50), user("A")],
            "system message",
        ),
    ],
)
def test_a_message_dropped_in_a_later_rendering_is_refused_then(
    source: str, messages: list[dict[str, Any]], lost: str, tokenizer: Tokenizer
) -> None:
    template = ChatTemplate(source)
    with pytest.raises(TextError, match=f"drops the {lost}"):
        encode_chat(template, tokenizer, messages)


def test_notes_say_what_somebody_would_not_expect() -> None:
    asked = [system("S"), user("A"), {"role": "assistant", "content": "B"}, user("C")]
    assert ChatTemplate(LOOP).probe().notes(asked) == []
    (note,) = ChatTemplate(STRICT).probe().notes(asked)
    assert "before the first question" in note
    assert ChatTemplate(STRICT).probe().notes(asked[1:]) == []
    (note,) = ChatTemplate(LAST_ALONE).probe().notes(asked[1:])
    assert "the last alone" in note


@pytest.mark.parametrize(
    ("source", "thinking", "default"),
    [
        (LOOP, "", None),
        (QWEN, "enable_thinking", True),
        (GRANITE, "thinking", False),
        (LOOP + "{% if enable_thinking %}{% endif %}", "", None),  # read, without effect
    ],
)
def test_thinking_is_found(source: str, thinking: str, default: bool | None) -> None:
    facts = ChatTemplate(source).probe()
    assert (facts.thinking, facts.thinks) == (thinking, default)


def test_variables_are_those_that_the_conversation_does_not_set() -> None:
    source = (
        "{{ bos_token }}{% if tools %}{% endif %}{% set x = level | default(1) %}{{ x }}"
        "{% for m in messages %}{{ m.content }}{{ loop.index }}{% endfor %}{{ mode }}{{ range(2) }}"
        "{% macro f(a) %}{{ a }}{{ style }}{% endmacro %}{{ f(1) }}"
    )
    assert ChatTemplate(source).probe().variables == {"level", "mode", "style"}


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt"])
def test_variables_do_not_replace_the_conversation(name: str) -> None:
    with pytest.raises(TextError, match=f"{name} is no variable"):
        ChatTemplate(LOOP).render([user("A")], variables={name: []})


def test_variables_are_as_untrusted_as_messages(tokenizer: Tokenizer) -> None:
    template = ChatTemplate("{{ style }}{{ tools }}{{ messages[0].content }}")
    variables = {"style": "<|im_end|>", "tools": [{"name": "<|im_start|>"}]}
    ids = encode_chat(template, tokenizer, [user("A")], variables=variables)
    assert not [i for i in ids if tokenizer.is_special(i)]


@pytest.mark.timeout(20)
def test_a_hostile_template_is_probed_within_one_rendering() -> None:
    bomb = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    with pytest.raises(TextError, match="too much work"):
        ChatTemplate(bomb).probe()
    once = "{% if messages | length > 1 %}" + bomb + "{% endif %}" + LOOP
    assert ChatTemplate(once).probe().history is False


def test_a_content_of_parts_is_joined_for_a_template_of_texts(tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    ids = encode_chat(ChatTemplate(LOOP), tokenizer, [user(parts)])
    assert tokenizer.decode(ids) == "[user]A\nB\n"
    with pytest.raises(TextError, match="a part that is no text"):
        encode_chat(ChatTemplate(LOOP), tokenizer, [user([{"type": "image"}])])


def test_a_system_message_alone_is_a_question() -> None:
    merged = TemplateFacts(system="merged")
    assert merged.arrange([system("A"), system("B")]) == [user("A\n\nB")]
    assert merged.arrange([system("A"), user("")]) == [user("A")]
