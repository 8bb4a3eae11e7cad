"""GGUF vocabularies as exporters leave them: wrong types, repeated texts, no pre-tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from text_models import (
    CONTROL,
    END,
    NORMAL,
    SAMPLES,
    START,
    USER_DEFINED,
    bpe_metadata,
    sentencepiece_metadata,
)

from picoedge.errors import TextError
from picoedge.text.export.export import write_from_gguf
from picoedge.text.export.pretokenizers import _FAMILIES, find_pretokenizer
from picoedge.text.export.recognition import recognise
from picoedge.text.export.special_names import written_names
from picoedge.text.template.template import ChatTemplate, encode_chat
from picoedge.text.tokenizer.base import TextSettings, Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer

TYPES = "tokenizer.ggml.token_type"
TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{% if tools %}<tool>{% endif %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
QUESTION = [{"role": "user", "content": "hi"}]


def built(metadata: dict[str, Any], folder: Path) -> Tokenizer:
    write_from_gguf(metadata, folder)
    return load_tokenizer(folder)


def typed(metadata: dict[str, Any], **kinds: int) -> dict[str, Any]:
    """`metadata` with these tokens typed otherwise."""
    types = list(metadata[TYPES])
    for text, kind in kinds.items():
        types[metadata["tokenizer.ggml.tokens"].index(text)] = kind
    return {**metadata, TYPES: types}


@pytest.mark.parametrize("kind", [NORMAL, USER_DEFINED, CONTROL])
@pytest.mark.parametrize("with_template", [True, False])
def test_turns_of_a_sentencepiece_file(kind: int, with_template: bool, tmp_path: Path) -> None:
    names = {"<start_of_turn>": kind, "<end_of_turn>": kind}
    metadata = typed(sentencepiece_metadata(), **names)
    if with_template:
        metadata["tokenizer.chat_template"] = TURNS
    tokenizer = built(metadata, tmp_path)
    start, end = (tokenizer.encode(name, add_bos=False) for name in names)
    assert (len(start), len(end)) == (1, 1)
    template = ChatTemplate.load(tmp_path)
    assert template is not None  # the family's, where the file has none
    ids = encode_chat(template, tokenizer, QUESTION)
    assert [i for i in ids if i in (*start, *end)] == [*start, *end, *start]
    typed_in = tokenizer.encode("<start_of_turn><end_of_turn>", parse_special=False)
    assert not {*start, *end} & set(typed_in)
    assert tokenizer.decode([*start, *end]) == ""
    assert end[0] in tokenizer.eos_ids


@pytest.mark.parametrize("kind", [NORMAL, USER_DEFINED])
def test_turns_of_a_byte_level_file(kind: int, tmp_path: Path) -> None:
    metadata = typed(bpe_metadata(), **{START: kind, END: kind})
    tokenizer = built({**metadata, "tokenizer.chat_template": CHATML}, tmp_path)
    assert tokenizer.encode(START + END) == [1, 2]
    assert not {1, 2} & set(tokenizer.encode(START + END, parse_special=False))


def test_without_types_the_file_s_own_special_tokens_are_special(tmp_path: Path) -> None:
    metadata = sentencepiece_metadata()
    del metadata[TYPES]
    # All bytes are then plain tokens; what the file names as beginning and end is not.
    tokenizer = built(metadata, tmp_path)
    assert tokenizer.encode("<s></s>", add_bos=False) == [1, 2]
    assert not {1, 2} & set(tokenizer.encode("<s></s>", add_bos=False, parse_special=False))


def test_a_token_that_a_template_writes_beside_turns_is_whole_but_shown(tmp_path: Path) -> None:
    """Such as <think> and <tool_call>: text of an answer, and one token."""
    metadata = typed(bpe_metadata(), **{"<tool>": NORMAL})
    for i, source in enumerate(("{% if tools %}<tool>{% endif %}" + CHATML, CHATML)):
        folder = tmp_path / str(i)
        folder.mkdir()
        tokenizer = built({**metadata, "tokenizer.chat_template": source}, folder)
        whole = tokenizer.encode("<tool>") == [700]
        assert whole == (i == 0)
        assert tokenizer.decode([700]) == "<tool>"


def test_a_name_that_is_no_token_is_said(tmp_path: Path) -> None:
    source = "{% for m in messages %}<|user|>{{ m.content }}<|im_end|>[INST]<b>{% endfor %}"
    built(bpe_metadata(**{"tokenizer.chat_template": source}), tmp_path)
    (note,) = TextSettings.read(tmp_path).notes
    assert "<|user|>" in note
    assert not [name for name in ("im_end", "INST", "<b>") if name in note]


def test_a_token_that_follows_an_answer_ends_one(tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ m.content }}\n<|im_start|>{% endfor %}"
    tokenizer = built(bpe_metadata(**{"tokenizer.chat_template": source}), tmp_path)
    assert tokenizer.eos_ids == {0, 1, 2}


@pytest.mark.parametrize("sound", [bpe_metadata, sentencepiece_metadata])
def test_of_two_tokens_with_one_text_the_first_is_the_text_s(sound: Any, tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    (tmp_path / "twice").mkdir()
    metadata = sound()
    once = built(metadata, tmp_path / "once")
    size = once.vocab_size
    again = [*range(300, 304), 1]  # words, and a control token
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata[TYPES]
    changes = {
        "tokenizer.ggml.tokens": [*tokens, *(tokens[i] for i in again)],
        TYPES: [*types, *(types[i] for i in again)],
    }
    if "tokenizer.ggml.scores" in metadata:
        scores = metadata["tokenizer.ggml.scores"]
        changes["tokenizer.ggml.scores"] = [*scores, *(scores[i] for i in again)]
    twice = built({**metadata, **changes}, tmp_path / "twice")
    assert twice.vocab_size == size + len(again)
    for text in SAMPLES:
        assert twice.encode(text) == once.encode(text)
    for copy, original in enumerate(again, size):
        assert twice.token_bytes(copy) == once.token_bytes(original)
        assert twice.is_special(copy) == once.is_special(original)
    assert twice.decode(again) == twice.decode(range(size, size + len(again)))


def test_empty_texts_and_their_stand_ins_do_not_meet(tmp_path: Path) -> None:
    metadata = bpe_metadata()
    tokens = [*metadata["tokenizer.ggml.tokens"], "", f"[EMPTY_{701}]", ""]
    changes = {"tokenizer.ggml.tokens": tokens, TYPES: [*metadata[TYPES], 1, 1, 1]}
    assert built({**metadata, **changes}, tmp_path).vocab_size == 704


def test_a_small_vocabulary_without_a_pretokenizer_is_told_of(tmp_path: Path) -> None:
    metadata = bpe_metadata()
    del metadata["tokenizer.ggml.pre"]
    write_from_gguf(metadata, tmp_path)
    (warning,) = TextSettings.read(tmp_path).warnings
    assert "'default' is assumed" in warning
    write_from_gguf(bpe_metadata(), tmp_path)
    assert TextSettings.read(tmp_path).warnings == ()


def vocabulary(size: int, **at: int) -> list[str]:
    tokens = [f"t{i}" for i in range(size)]
    for text, i in at.items():
        tokens[i] = text
    return tokens


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        (vocabulary(128256, **{"<|begin_of_text|>": 128000}), "llama-bpe"),
        (vocabulary(151936, **{"<|endoftext|>": 151643}), "qwen2"),
        (vocabulary(50257, **{"<|endoftext|>": 50256}), "gpt-2"),
    ],
    ids=["llama3", "qwen2", "gpt2"],
)
def test_known_vocabularies_are_recognised(tokens: list[str], name: str) -> None:
    assert recognise(tokens) == (name, True)
    assert find_pretokenizer(name)


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "dbrx", "stablelm2", "gpt-4o", "tekken"])
def test_a_vocabulary_shows_how_its_words_were_cut(name: str) -> None:
    """Trained here on texts cut by that pre-tokenizer."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = json.loads(Tokenizer(models.BPE()).to_str())
    made["pre_tokenizer"] = find_pretokenizer(name).to_json()
    tokenizer = Tokenizer.from_str(json.dumps(made))
    text = "def aB(x1234):\n    fooBar(12345, 6789);\n\n  camelCase = 1234;\n\nreturn {x};\n" * 2
    letters = str.maketrans("0123456789", "etaoinshrd")
    names = [str(i * 7919 % 100_003).translate(letters) for i in range(1500)]
    words = [f"{n}Case{i * 7919} x{i}; {n.title()}.\n\n" for i, n in enumerate(names)]
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([text, *words], trainer)
    vocab = tokenizer.get_vocab()
    assert recognise(sorted(vocab, key=vocab.__getitem__)) == (name, False)


def test_real_files_are_recognised(smollm2_gguf: Path) -> None:
    from picoedge.store.sources.gguf import read_gguf

    metadata = read_gguf(smollm2_gguf).metadata
    assert recognise(metadata["tokenizer.ggml.tokens"]) == (metadata["tokenizer.ggml.pre"], True)


# Names that llama.cpp has for models of the architectures that run here.
CUTS = {
    "deepseek-llm": ["Don", "'", "t", " aB", "1", "2", "3", "4", ",", "中文", "\n", "\n"],
    "deepseek-coder": ["Don", "'", "t", " aB", "1", "2", "3", "4", ",", "中文", "\n", "\n"],
    "deepseek-v3": ["Don", "'t", " aB", "123", "4", ",", "中文", "\n\n"],
    "deepseek-r1-qwen": ["Don", "'t", " aB", "1", "2", "3", "4", ",中文", "\n\n"],
    "seed-coder": ["Don", "'t", " aB", "1", "2", "3", "4", ",中文", "\n\n"],
    "viking": ["Don't", " aB", "1", "2", "3", "4", ",", "中文", "\n\n"],
    "poro-chat": ["Don't", " aB1234", ",", "中文", "\n\n"],
    "bloom": ["Don't", " aB1234", ",", "中文", "\n\n"],
    "superbpe": ["Don't aB", "1", "234", ",中文\n\n"],
    "qwen35": ["Don", "'t", " aB", "1", "2", "3", "4", ",中文", "\n\n"],
    "kimi-k2": ["Don't", " a", "B", "123", "4", ",", "中文", "\n\n"],
    "afmoe": ["Don", "'t", " aB", "1", "234", ",", "中文", "\n\n"],
    "chameleon": ["Don", "'", "t", " aB", "1", "2", "3", "4", ",", "中文", "\n", "\n"],
    "minicpm5": ["Don", "'t", " aB", "123", "4", ",中文", "\n\n"],
}


def cut_by(name: str, text: str) -> list[str]:
    """The words that a pre-tokenizer makes of a text."""
    import json

    from tokenizers import Tokenizer, models

    made = json.loads(Tokenizer(models.BPE()).to_str())
    splits = find_pretokenizer(name).to_json()["pretokenizers"][:-1]  # without the byte alphabet
    made["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": splits}
    tokenizer = Tokenizer.from_str(json.dumps(made))
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", CUTS)
def test_cuts(name: str) -> None:
    assert cut_by(name, "Don't aB1234,中文\n\n") == CUTS[name]


MIXED = "aकी漢b'S 漢, 12345/\n"  # marks of Devanagari, Han letters beside Latin ones
MIXED_CUTS = {
    "qwen2": ["aक", "ी漢b", "'S", " 漢", ",", " ", *"12345", "/\n"],
    "qwen35": ["aकी漢b", "'S", " 漢", ",", " ", *"12345", "/\n"],
    "kimi-k2": ["aकी", "漢", "b'S", " ", "漢", ",", " ", "123", "45", "/\n"],
    "afmoe": ["aकी", "漢", "b", "'S", " ", "漢", ",", " ", "12", "345", "/\n"],
}


@pytest.mark.parametrize("name", MIXED_CUTS)
def test_cuts_of_scripts(name: str) -> None:
    assert cut_by(name, MIXED) == MIXED_CUTS[name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("jina-v2-code", "embeddings"), ("gemma4", "merges characters"), ("gpt-9", "is not known")],
)
def test_a_pretokenizer_is_refused_for_its_reason(name: str, reason: str) -> None:
    with pytest.raises(TextError, match=reason) as caught:
        find_pretokenizer(name)
    assert caught.value.hint


@pytest.mark.parametrize("name", [names.split()[0] for names, _ in _FAMILIES])
def test_every_name_makes_a_tokenizer_that_keeps_every_byte(name: str, tmp_path: Path) -> None:
    tokenizer = built(bpe_metadata(name), tmp_path)
    text = "Plain CamelCase text,  1234567 don't\n\n\t ñ 中文 한글 👩‍🚀 x<|im_end|>"
    ids = tokenizer.encode(text, add_bos=False, parse_special=False)
    assert tokenizer.decode(ids) == text


def test_no_name_is_in_two_families() -> None:
    names = [name for names, _ in _FAMILIES for name in names.split()]
    assert len(names) == len(set(names))


def test_an_end_that_the_file_names_is_the_only_one(tmp_path: Path) -> None:
    """gpt-oss ends its thinking by one token, and the answer after it by another."""
    source = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<tool>"
        "<|im_end|>{% endif %}{% endfor %}"
    )
    metadata = typed(bpe_metadata(), **{"<tool>": CONTROL})
    tokenizer = built({**metadata, "tokenizer.chat_template": source}, tmp_path)
    assert tokenizer.eos_ids == {0, 2}


def test_names_of_turns_without_bars_are_control_where_nothing_closes_them() -> None:
    names = written_names(
        "{% for m in messages %}<sep><role>{{ m.content }}</role><think>{% endfor %}"
    )
    assert [n for n in sorted(names.turns) if names.is_control(n)] == ["<sep>"]
    assert names.after_answer[0] == "</role>"


def test_a_name_of_control_tokens_in_a_broken_template_is_nobody_s() -> None:
    assert written_names("{% if %}<|x|>") == written_names(None)
    assert written_names("{{ raise_exception('no') }}<|x|>").others == {"<|x|>"}


@pytest.mark.parametrize("value", [-1, 2**32 - 1, 9999])
def test_ids_that_are_no_tokens_are_passed_over(value: int, tmp_path: Path) -> None:
    """As -1 in old files: a token that a model has not."""
    keys = ("padding", "unknown", "mask", "seperator", "eot")
    changes = {f"tokenizer.ggml.{key}_token_id": value for key in keys}
    for sound in (bpe_metadata, sentencepiece_metadata):
        folder = tmp_path / sound.__name__
        folder.mkdir()
        tokenizer = built(sound(**changes), folder)
        assert tokenizer.encode("hi") == built(sound(), folder).encode("hi")
        write_from_gguf(sound(**changes), folder)
        assert TextSettings.read(folder).notes[:1] == (
            f"the file's eot_token_id is no token of its {tokenizer.vocab_size}: passed over",
        )


def test_a_sentencepiece_file_without_scores_or_unknown_token(tmp_path: Path) -> None:
    metadata = typed(sentencepiece_metadata(), **{"<unk>": CONTROL})
    metadata["tokenizer.ggml.tokens"][0] = "<pad>"
    del metadata["tokenizer.ggml.scores"]
    tokenizer = built(metadata, tmp_path)
    assert tokenizer.decode(tokenizer.encode("any text é 🙂")) == "any text é 🙂"
