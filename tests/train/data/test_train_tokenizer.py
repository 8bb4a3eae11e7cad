"""Our tokenizers: as the library reads them, the same from the same text, and ready to chat."""

from __future__ import annotations

import _thread
import hashlib
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from text_models import HARD_TEXT, SAMPLES, load_sentencepiece
from training_text import english

from picoedge.errors import DataError
from picoedge.text.template.template import ChatTemplate, encode_chat
from picoedge.text.tokenizer.load import load_tokenizer
from picoedge.train.data.tokenizer import TokenizerModel, train_tokenizer, write_tokenizer

TALK = [{"role": "user", "content": "What is it?"}]
AWKWARD = [
    *SAMPLES, "<s>", "</s>a<unk>", "<|im_start|>user", "a\tb\r\n", "\u2581", "é" * 50, "\U0010ffff",
    "1234567", "      x", "日本語のテキスト", "\ufeffmark", "\u200d\u202e", "a" * 3000,
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> TokenizerModel:
    return train_tokenizer([english(4000), HARD_TEXT], 512)


def encoder(model: TokenizerModel, folder: Path, *, conversations: bool = False) -> Any:
    write_tokenizer(model, folder, conversations=conversations)
    return load_tokenizer(folder)


def test_the_pack_encodes_and_decodes_as_the_library(model: TokenizerModel, tmp_path: Path) -> None:
    ours, theirs = encoder(model, tmp_path), load_sentencepiece(model.data)
    assert ours.vocab_size == theirs.vocab_size() == model.vocab_size == 512
    for text in AWKWARD:
        ids = ours.encode(text, add_bos=False, parse_special=False)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids), text
        if "\u2581" not in text:  # the library's own space
            assert ours.decode(ids) == text
    assert ours.encode("a")[0] == ours.bos_id == theirs.bos_id()
    assert ours.encode("</s><|im_end|>", add_bos=False) == [theirs.eos_id(), 4]
    assert {theirs.eos_id(), 4} == ours.eos_ids


def test_the_same_text_gives_the_same_bytes_in_another_process(model: TokenizerModel) -> None:
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1])\n"
        "from text_models import HARD_TEXT; from training_text import english\n"
        "from picoedge.train.data.tokenizer import train_tokenizer\n"
        "data = train_tokenizer([english(4000), HARD_TEXT], 512).data\n"
        "print(hashlib.sha256(data).hexdigest())"
    )
    support = Path(__file__).parents[2] / "support"
    run = subprocess.run(
        [sys.executable, "-c", code, support],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.strip() == hashlib.sha256(model.data).hexdigest()


def test_a_small_text_gets_a_smaller_vocabulary_and_says_so() -> None:
    small = train_tokenizer([english(150)], 4096)
    assert 320 <= small.vocab_size < 4096
    assert small.vocab_size % 16 == 0
    assert f"{small.vocab_size} is taken" in small.note
    assert load_sentencepiece(small.data).vocab_size() == small.vocab_size


@pytest.mark.parametrize("sample", [[], ["\n\n"], ["a b c"], ["\0"], ["ab" * 5000]])
def test_too_small_a_text_is_refused(sample: list[str]) -> None:
    with pytest.raises(DataError, match="too small for a tokenizer"):
        train_tokenizer(sample, 1024)


@pytest.mark.parametrize("vocabulary", [0, 319, 330, -16])
def test_a_vocabulary_that_cannot_be_is_refused(vocabulary: int) -> None:
    with pytest.raises(DataError, match="a multiple of 16, 320 at least"):
        train_tokenizer([english(100)], vocabulary)


def test_many_kinds_of_characters_leave_room_for_words(tmp_path: Path) -> None:
    draw = random.Random(5)
    chinese = "".join(chr(draw.randint(0x4E00, 0x9FFF)) for _ in range(9000))
    made = train_tokenizer([english(4000) + chinese], 640)
    assert made.vocab_size == 640
    tokenizer = encoder(made, tmp_path)
    assert tokenizer.decode(tokenizer.encode(chinese[:50])) == chinese[:50]
    # The English part alone has words of one token.
    assert len(tokenizer.encode(english(100))) < len(english(100)) / 1.5


@pytest.mark.parametrize("conversations", [False, True])
def test_a_pack_can_chat_at_once(
    model: TokenizerModel, tmp_path: Path, conversations: bool
) -> None:
    tokenizer = encoder(model, tmp_path, conversations=conversations)
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    facts = template.probe()
    assert facts.history
    ids = encode_chat(template, tokenizer, TALK)
    shown = tokenizer.decode(ids, skip_special=False)
    if conversations:
        assert shown == "<s><|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    else:
        assert shown == "<s>What is it?\n"
    assert not (tmp_path / ".probe").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chat_template.jinja", "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip


def test_an_interrupt_ends_a_training_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def train(lines: object, vocabulary: int) -> bytes:
        _thread.interrupt_main()
        over.wait(60)
        return b""

    monkeypatch.setattr("picoedge.train.data.tokenizer._train", train)
    try:
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer([english(10)], 512)
    finally:
        over.set()
