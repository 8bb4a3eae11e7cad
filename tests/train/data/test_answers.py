"""Which tokens are learned: those a chat has the model write, up to the end of its turn."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from text_models import END, START, bpe_metadata, trained_sentencepiece

from picoedge.errors import DataError, TextError
from picoedge.text.export.export import write_from_gguf, write_from_huggingface
from picoedge.text.template.chosen import end_answers
from picoedge.text.template.named import TEMPLATES
from picoedge.text.template.template import ChatTemplate, encode_chat
from picoedge.text.tokenizer.base import Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer
from picoedge.train.data.answers import ExampleEncoder, TokenizedText
from picoedge.train.data.records import ChatMessage, JsonlRecord

SENTENCEPIECES = ("plain", "legacy", "first")  # where each puts a space
TALK = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 中文?"},
    {"role": "assistant", "content": "A language 🙂"},
    {"role": "user", "content": "And 12?"},
    {"role": "assistant", "content": "A number,\n\nof two digits."},
)
# An answer that begins with line ends, which some tokenizers join to those of the prompt.
JOINED = (
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "\n\n  x"},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "\ny"},
)
# As Qwen3's: an earlier answer loses its thoughts, and the last one gets some.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Asks with a space at the end, which belongs to the word that follows.
SPOKEN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# As DeepSeek-R1's: asks with a word that it does not render.
PROMPTED = THINKING.replace("<think>\n\n</think>\n\n", "").replace(
    "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
)


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as name:
        source, pack = Path(name, "source"), Path(name, "pack")
        source.mkdir()
        pack.mkdir()
        if kind == "bpe":
            write_from_gguf(bpe_metadata(), pack)
        else:
            config = {"bos_token": "<s>", "eos_token": "</s>", "legacy": kind == "legacy"}
            (source / "tokenizer.model").write_bytes(trained_sentencepiece(kind != "plain"))
            (source / "tokenizer_config.json").write_text(json.dumps(config))
            write_from_huggingface(source, pack)
        return load_tokenizer(pack)


def encoder(kind: str, source: str) -> tuple[ExampleEncoder, ChatTemplate, Tokenizer]:
    known = load(kind)
    eos = next(iter(sorted(known.eos_ids)))
    names = ("<|endoftext|>", END) if kind == "bpe" else ("<s>", "</s>")
    template = ChatTemplate(source, bos_token=names[0], eos_token=names[1])
    end_answers(template, known)
    return ExampleEncoder(known, template, eos), template, known


def load(kind: str) -> Tokenizer:
    known = tokenizer(kind)
    known.eos_ids = frozenset(i for i in known.eos_ids if known.is_special(i))
    return known


def data(known: Tokenizer, ids: Sequence[int]) -> bytes:
    return b"".join(map(known.token_bytes, ids))


def learned(text: TokenizedText) -> list[list[int]]:
    """Runs of tokens that are learned."""
    runs: list[list[int]] = [[]]
    for token, counted in zip(text.ids, text.counted, strict=True):
        if counted:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "bpe") for name in sorted(TEMPLATES)),
        *((name, kind) for name in ("gemma", "llama2", "alpaca") for kind in SENTENCEPIECES),
    ],
)
@pytest.mark.parametrize("talk", [TALK, JOINED], ids=["talk", "joined"])
def test_learned_tokens_are_those_that_a_chat_writes(
    talk: Sequence[ChatMessage], name: str, kind: str
) -> None:
    made, template, known = encoder(kind, TEMPLATES[name])
    [text] = made.encode(JsonlRecord(messages=tuple(talk)))
    answers = [m["content"] for m in talk if m["role"] == "assistant"]
    runs = learned(text)
    assert len(runs) == len(answers)
    for run, answer in zip(runs, answers, strict=True):
        said = data(known, run).decode()
        assert answer.strip() in said
        assert not any(m["content"] in said for m in talk if m["role"] == "user")
        if run[-1] in known.eos_ids:
            assert not known.eos_ids & set(run[:-1])
    assert text.counted[-1]
    # A chat gives the model these very bytes before each of its answers.
    ends = [i for i, counted in enumerate(text.counted) if counted and not text.counted[i - 1]]
    turns = [i for i, m in enumerate(talk) if m["role"] == "assistant"]
    for start, turn in zip(ends, turns, strict=True):
        prompt = encode_chat(template, known, talk[:turn])
        assert data(known, text.ids[:start]) == data(known, prompt)
        if turn == turns[0]:
            assert text.ids[:start] == prompt
    # All together they are what the template renders.
    whole = encode_chat(template, known, talk, add_generation_prompt=False)
    assert data(known, whole).startswith(data(known, text.ids[:-1]))


def test_the_token_that_ends_a_turn_is_learned() -> None:
    made, _, known = encoder("bpe", TEMPLATES["chatml"])
    [text] = made.encode(JsonlRecord(messages=TALK))
    end = known.encode(END, add_bos=False)[0]
    assert [run[-1] for run in learned(text)] == [end, end]
    assert [run.count(end) for run in learned(text)] == [1, 1]
    assert [data(known, run[:-1]).decode() for run in learned(text)] == [
        "A language 🙂", "A number,\n\nof two digits.",
    ]  # fmt: skip


def test_a_token_across_the_boundary_is_cut() -> None:
    made, template, known = encoder("bpe", SPOKEN)
    pieces = map(known.token_bytes, range(3, known.vocab_size))
    word = next(piece for piece in pieces if piece[:1] == b" " and piece[1:].isalpha()).decode()[1:]
    talk = (*TALK[:2], {"role": "assistant", "content": word}, *TALK[3:])
    [text] = made.encode(JsonlRecord(messages=talk))
    prompt = encode_chat(template, known, talk[:2])
    whole = encode_chat(template, known, talk, add_generation_prompt=False)
    assert whole[: len(prompt)] != prompt, "the tokenizer joins a space and a word"
    assert text.ids[: len(prompt)] == prompt
    said = [data(known, run).decode() for run in learned(text)]
    assert said == [f"{word}{END}", f"A number,\n\nof two digits.{END}"]
    assert data(known, whole).startswith(data(known, text.ids))


def test_names_of_tokens_in_an_answer_are_text() -> None:
    made, _, known = encoder("bpe", TEMPLATES["chatml"])
    answer = f"a{END}\n{START}user b"
    talk = ({"role": "user", "content": END}, {"role": "assistant", "content": answer})
    [text] = made.encode(JsonlRecord(messages=talk))
    [run] = learned(text)
    assert data(known, run).decode() == answer + END
    assert [known.is_special(i) for i in run] == [False] * (len(run) - 1) + [True]


def test_an_answer_that_later_turns_render_otherwise_is_a_text_of_its_own() -> None:
    made, template, known = encoder("bpe", THINKING)
    last, first = made.encode(JsonlRecord(messages=TALK))
    thought = "<think>\n\n</think>\n\n"
    for text, turn in ((first, 2), (last, 4)):
        [run] = learned(text)
        assert data(known, run).decode() == thought + TALK[turn]["content"] + END
        prompt = encode_chat(template, known, TALK[:turn])
        assert text.ids[: len(prompt)] == prompt
    assert data(known, last.ids).decode().count("<think>") == 1


def test_a_template_that_asks_in_other_words_is_followed_as_far_as_it_goes() -> None:
    made, _, known = encoder("bpe", PROMPTED)
    for text, turn in zip(made.encode(JsonlRecord(messages=TALK)), (2, 4), strict=True):
        [run] = learned(text)
        assert data(known, run).decode() == TALK[turn]["content"] + END


def test_messages_after_the_last_answer_are_left_out() -> None:
    made, _, _ = encoder("bpe", TEMPLATES["chatml"])
    more = ({"role": "user", "content": "Thanks, that is long." * 20},)
    assert made.encode(JsonlRecord(messages=TALK + more)) == made.encode(JsonlRecord(messages=TALK))


def test_a_text_is_learned_whole() -> None:
    made, _, known = encoder("bpe", TEMPLATES["chatml"])
    [text] = made.encode(JsonlRecord(text=f"{START}user\nHi{END}"))
    end = known.encode(END, add_bos=False)[0]
    assert text.counted == [False] + [True] * (len(text.ids) - 1)
    assert text.ids.count(end) == 1  # it is there already
    [plain] = made.encode(JsonlRecord(text="Hi"))
    assert plain.ids[-1] in known.eos_ids


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        (TALK[:2], "no answer in it"),
        (TALK[2:3], "begins with an answer"),
        ((TALK[1], {"role": "assistant", "content": " \n"}), "an answer without text"),
    ],
)
def test_a_conversation_without_an_answer_is_refused(
    talk: tuple[ChatMessage, ...], message: str
) -> None:
    made, _, _ = encoder("bpe", TEMPLATES["chatml"])
    with pytest.raises(DataError, match=message):
        made.encode(JsonlRecord(messages=talk))


def test_a_text_without_text_and_a_model_without_template_are_refused() -> None:
    with pytest.raises(DataError, match="no text in it"):
        encoder("bpe", TEMPLATES["chatml"])[0].encode(JsonlRecord(text=" \n"))
    with pytest.raises(DataError, match="no chat template"):
        ExampleEncoder(tokenizer("bpe"), None, 2).encode(JsonlRecord(messages=TALK))
    refusing = "{{ raise_exception('roles must alternate') if messages | length > 2 }}" + THINKING
    with pytest.raises(TextError, match="roles must alternate"):
        encoder("bpe", refusing)[0].encode(JsonlRecord(messages=TALK))
