"""A vocabulary without its tokenizer says what the tokenizer would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from picoedge.store.pack.reader import Pack
from picoedge.text.tokenizer.load import load_tokenizer
from picoedge.text.tokenizer.piece_table import PieceTable
from picoedge.text.tokenizer.stream_decoder import decode


@pytest.mark.parametrize("model", ["smollm2_pack", "gemma_pack"])
def test_every_token_says_the_same(model: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    tokenizer, size = load_tokenizer(path), Pack.open(path).config.vocab_size
    table = PieceTable(tokenizer, size)
    for token in range(-2, size + 2):
        assert table.token_bytes(token) == tokenizer.token_bytes(token)
        assert table.is_special(token) == tokenizer.is_special(token)
    assert table.eos_ids == tokenizer.eos_ids
    ids = tokenizer.encode(" a text, begun with a space: 漢字 🙂")
    assert decode(table, ids, skip_special=True) == tokenizer.decode(ids)


def test_an_answer_within_a_budget_reads_as_one_without(smollm2_pack: Path) -> None:
    command = [
        sys.executable, "-m", "picoedge", "generate", str(smollm2_pack), "--raw", "--ignore-eos",
        "-p", "Water, 水, is", "-n", "24", "--temperature", "0", "-c", "64",
    ]  # fmt: skip
    texts = [
        subprocess.run([*command, *more], check=True, capture_output=True, text=True).stdout
        for more in ([], ["--memory", "120M"])
    ]
    assert texts[0] == texts[1] != ""
