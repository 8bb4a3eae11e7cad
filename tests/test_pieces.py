"""A vocabulary without its tokenizer says what the tokenizer would."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from picoedge.engine.open_options import OpenOptions
from picoedge.engine.opening import open_answer
from picoedge.engine.prompting import Prompt
from picoedge.model.sampling_options import SamplingOptions
from picoedge.store.reader import Pack
from picoedge.text.pieces import PieceTable
from picoedge.text.stream import decode
from picoedge.text.tokenizer import load_tokenizer


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
    texts = []
    for memory in (None, 300_000_000):
        options = OpenOptions(
            memory_bytes=memory, n_ctx=64, sampling=SamplingOptions(temperature=0)
        )
        session, prompt = open_answer(
            smollm2_pack, options, lambda prompter: Prompt(prompter.encode("Water, 水, is"))
        )
        with closing(session):
            texts.append("".join(session.generate(prompt.ids, max_tokens=24, ignore_eos=True)))
    assert texts[0] == texts[1] != ""
