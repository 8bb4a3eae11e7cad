"""Folders with `vocab.json` and `merges.txt` alone: the ids are those of transformers' class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from text_models import END, SAMPLES, START, trained_bpe

from picoedge.errors import TextError
from picoedge.text.export.export import write_from_huggingface
from picoedge.text.tokenizer.base import Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer

TEXT_END = "<|endoftext|>"
CONTROL = [TEXT_END, START, END]
TYPED = [*SAMPLES, f"a{END}\n{START}user", "cafe\u0301 4711 it's", f"{TEXT_END}x"]
Change = Callable[[Path], Any]


def write_files(folder: Path, config: dict[str, Any], listed: bool) -> Path:
    """The two files of the trained BPE, and the config.

    `listed`: the control tokens are in the config, behind the vocabulary, as Qwen2 has them.
    """
    model = trained_bpe()
    names = sorted(model["vocab"], key=model["vocab"].get)
    ordinary = [name for name in names if name not in CONTROL]
    vocabulary = ordinary if listed else [*ordinary, TEXT_END]
    if listed:
        config["added_tokens_decoder"] = {
            str(len(vocabulary) + i): {
                "content": name, "lstrip": False, "normalized": False, "rstrip": False,
                "single_word": False, "special": True,
            }
            for i, name in enumerate(CONTROL)
        }  # fmt: skip
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    folder.mkdir()
    text = json.dumps({name: i for i, name in enumerate(vocabulary)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    lines = "\n".join(["#version: 0.2", *merges, ""])
    (folder / "merges.txt").write_text(lines, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return folder


def packed(source: Path) -> Tokenizer:
    out = source.with_name("pack")
    out.mkdir()
    write_from_huggingface(source, out)
    return load_tokenizer(out)


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "in the vocabulary"])
@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "GPT2Tokenizer"])
def test_ids_are_those_of_transformers(name: str, listed: bool, tmp_path: Path) -> None:
    import transformers

    config = {"tokenizer_class": name, "eos_token": END, "bos_token": None, "pad_token": TEXT_END}
    source = write_files(tmp_path / "model", config, listed)
    oracle = getattr(transformers, name).from_pretrained(source)
    ours = packed(source)
    for text in TYPED:
        expected = oracle(text, add_special_tokens=False).input_ids
        assert ours.encode(text, add_bos=False) == ours.encode(text) == expected
        assert ours.decode(expected) == oracle.decode(
            expected, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    assert {oracle.convert_tokens_to_ids(text) for text in (END, TEXT_END)} <= ours.eos_ids


@pytest.mark.parametrize("named", ["Qwen2TokenizerFast", None])
def test_the_class_may_be_named_by_its_quick_form_or_by_the_model(
    named: str | None, tmp_path: Path
) -> None:
    config = {"tokenizer_class": named} if named else {}
    ours = packed(write_files(tmp_path / "model", config, True))
    composed, apart = ours.encode("caf\u00e9"), ours.encode("cafe\u0301")
    assert composed == apart  # Qwen2's form of Unicode
    assert ours.encode("42") == [*ours.encode("4"), *ours.encode("2")]


def edit(name: str, old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


REFUSED: dict[str, tuple[dict[str, Any], Change, str]] = {
    "an unknown class": ({"tokenizer_class": "BartTokenizer"}, bool, "BartTokenizer"),
    "no class": ({}, edit("config.json", "qwen2", "llama"), "no config names"),
    "a space before texts": (
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, bool, "add_prefix_space",
    ),
    "an id twice": ({}, edit("vocab.json", ": 1,", ": 0,"), "an id of its own"),
    "an id of text": ({}, edit("vocab.json", ": 1,", ': "1",'), "an id of its own"),
    "no token": ({}, lambda folder: (folder / "vocab.json").write_text("{}"), "an id of its own"),
    "an unknown merge": ({}, edit("merges.txt", "0.2\n", "0.2\nzz zz\n"), "'zz zz'"),
    "a merge of one": ({}, edit("merges.txt", "0.2\n", "0.2\nzz\n"), "'zz'"),
    "half a character": ({}, edit("vocab.json", "{", '{"\\ud800": 9999, '), "half a character"),
    "no JSON": ({}, lambda folder: (folder / "vocab.json").write_text("{"), "is not JSON"),
    "no text": ({}, lambda folder: (folder / "merges.txt").write_bytes(b"\xff"), "is not text"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_makes_no_tokenizer_is_refused(case: str, tmp_path: Path) -> None:
    config, change, says = REFUSED[case]
    source = write_files(tmp_path / "model", config, True)
    change(source)
    with pytest.raises(TextError) as caught:
        packed(source)
    assert says in caught.value.message
    assert str(source) in caught.value.message
    assert list((tmp_path / "pack").iterdir()) == []
