"""Tokenizers built from the metadata of real GGUF files, against llama.cpp and transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from text_models import DATA, HARD_TEXT

from picoedge.store.sources.gguf import read_gguf
from picoedge.text.export.export import write_from_gguf
from picoedge.text.template.template import ChatTemplate, encode_chat
from picoedge.text.tokenizer.base import Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer

EXPECTED = json.loads((DATA / "hard_text_ids.json").read_text())["models"]
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


def written(gguf: Path, folder: Path) -> Path:
    write_from_gguf(read_gguf(gguf).metadata, folder)
    return folder


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(smollm2_gguf, tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def gemma(gemma_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(gemma_gguf, tmp_path_factory.mktemp("gemma"))


@pytest.fixture(params=["smollm2", "gemma"])
def model(request: pytest.FixtureRequest) -> tuple[Tokenizer, dict[str, Any]]:
    return load_tokenizer(request.getfixturevalue(request.param)), EXPECTED[request.param]


@pytest.mark.parametrize("reading", ["special", "plain"])
def test_ids_equal_llama_cpp(model: tuple[Tokenizer, dict[str, Any]], reading: str) -> None:
    tokenizer, expected = model[0], model[1][reading]

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_bos=False, parse_special=reading == "special")

    assert encode(HARD_TEXT) == expected["whole"]
    assert [encode(line) for line in HARD_TEXT.split("\n")] == expected["lines"]
    assert [[text, encode(text)] for text, _ in expected["extras"]] == expected["extras"]


def test_hard_text_survives_the_round_trip(model: tuple[Tokenizer, dict[str, Any]]) -> None:
    tokenizer = model[0]
    ids = tokenizer.encode(HARD_TEXT, parse_special=False)
    assert tokenizer.decode(ids) == HARD_TEXT
    special = tokenizer.encode(HARD_TEXT, add_bos=False)
    assert tokenizer.decode(special, skip_special=False) == HARD_TEXT
    assert len(tokenizer.decode(special)) < len(HARD_TEXT)


def test_empty_text(smollm2: Path, gemma: Path) -> None:
    assert load_tokenizer(smollm2).encode("") == []
    assert load_tokenizer(gemma).encode("") == [2]
    assert load_tokenizer(gemma).encode("<bos>") == [2]


def test_smollm2_equals_transformers(smollm2: Path, smollm2_gguf: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    metadata = read_gguf(smollm2_gguf).metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    theirs = Tokenizer(models.BPE({text: i for i, text in enumerate(tokens)}, merges))
    theirs.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])  # fmt: skip
    theirs.add_special_tokens(tokens[:17])
    oracle = PreTrainedTokenizerFast(tokenizer_object=theirs)
    ours = load_tokenizer(smollm2)
    for text in [HARD_TEXT, *HARD_TEXT.split("\n"), ""]:
        assert ours.encode(text) == oracle(text, add_special_tokens=False).input_ids


def test_tokens_that_end_an_answer(smollm2: Path, gemma: Path) -> None:
    first, second = load_tokenizer(smollm2), load_tokenizer(gemma)
    assert (first.bos_id, first.eos_ids, first.vocab_size) == (1, {0, 2}, 49152)
    assert (second.bos_id, second.eos_ids, second.vocab_size) == (2, {1, 106}, 262144)


def test_smollm2_chat(smollm2: Path) -> None:
    template = ChatTemplate.load(smollm2)
    assert template is not None
    text = template.render(QUESTION)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("Why is the sky blue?<|im_end|>\n<|im_start|>assistant\n")
    ids = encode_chat(template, load_tokenizer(smollm2), QUESTION)
    assert [i for i in ids if i < 17] == [1, 2, 1, 2, 1]


def test_gemma_has_a_template_of_its_family(gemma: Path) -> None:
    template = ChatTemplate.load(gemma)
    assert template is not None
    turn = "<start_of_turn>user\nWhy is the sky blue?<end_of_turn>\n<start_of_turn>model\n"
    assert template.render(QUESTION) == "<bos>" + turn
    assert encode_chat(template, load_tokenizer(gemma), QUESTION).count(2) == 1
    system = [{"role": "system", "content": "Be brief."}, *QUESTION]
    assert "user\nBe brief.\n\nWhy is the sky blue?<end_of_turn>" in template.render(system)


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [("smollm2", "sentencepiece jinja2 numpy"), ("gemma", "tokenizers jinja2 numpy")],
)
def test_loading_imports_only_its_own_library(
    name: str, unwanted: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    code = (
        "import sys; from pathlib import Path;"
        "from picoedge.text.tokenizer.load import load_tokenizer;"
        "load_tokenizer(Path(sys.argv[1])).encode('hello');"
        "print(*(name for name in sys.argv[2].split() if name in sys.modules))"
    )
    command = [sys.executable, "-c", code, str(folder), unwanted]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"
