"""One text, however it is computed: both backends, any threads, chunks and split into shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from threads_as_boards import on_boards, with_hub
from tiny_model import follow, write_tiny_model

from picoedge.kernels.api import Kernels
from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Slice
from picoedge.store.sources.source import open_source

PROMPT = [3, 141, 59, 26, 53, 58, 97, 93, 23, 84, 62, 64, 33, 83, 27, 95, 2, 88, 41, 97, 169]
STEPS = 24

Run = tuple[list[int], np.ndarray]


@pytest.fixture(scope="module", params=[4, 5, 6, 8])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder: Path = tmp_path_factory.mktemp("golden")
    source = open_source(write_tiny_model(folder / "hf"))
    pack_source(source, folder / "tiny.pico", bits=request.param)
    return Pack.open(folder / "tiny.pico")


def greedy(model: Transformer) -> Run:
    """STEPS greedy tokens after PROMPT, and the logits of each step."""
    tokens: list[int] = []
    seen = []
    logits = model.forward(PROMPT, 0)
    for step in range(STEPS):
        seen.append(logits.copy())
        tokens.append(int(logits.argmax()))
        logits = model.forward(tokens[-1:], len(PROMPT) + step)
    return tokens, np.stack(seen)


def on_one_board(packed: Pack, kernels: Kernels, batch: int = 256) -> Run:
    model = Transformer(packed, kernels, 64, batch=batch)
    try:
        return greedy(model)
    finally:
        model.close()


@pytest.fixture(scope="module")
def native(packed: Pack) -> Run:
    return on_one_board(packed, load_kernels("native", 1))


def test_the_text_is_the_one_the_model_was_made_to_say(native: Run) -> None:
    want, token = [], PROMPT[-1]
    for _ in range(STEPS):
        token = follow(token)
        want.append(token)
    assert native[0] == want


def test_the_margins_are_wide(native: Run) -> None:
    best = np.sort(native[1], axis=1)
    assert (best[:, -1] - best[:, -2]).min() > 1.0


def test_both_backends_say_the_same(packed: Pack, native: Run) -> None:
    tokens, logits = on_one_board(packed, load_kernels("numpy", 1))
    assert tokens == native[0]
    # the order of f32 sums differs, which now and then moves an int8 activation by one step
    assert np.abs(logits - native[1]).max() < 0.02 * np.abs(native[1]).max()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_a_bit(packed: Pack, native: Run, threads: int) -> None:
    _, logits = on_one_board(packed, load_kernels("native", threads))
    np.testing.assert_array_equal(logits, native[1])


@pytest.mark.parametrize("batch", [1, 2, 5, 8, 13])
def test_chunks_do_not_change_a_bit(packed: Pack, native: Run, batch: int) -> None:
    _, logits = on_one_board(packed, load_kernels("native", 2), batch)
    np.testing.assert_array_equal(logits, native[1])


def test_a_cache_rebuilt_by_prefill_equals_the_lost_one(packed: Pack, native: Run) -> None:
    model = Transformer(packed, load_kernels("native", 1), 64)
    logits = model.forward(PROMPT + native[0][:-1], 0).copy()
    model.close()
    np.testing.assert_array_equal(logits, native[1][-1])


HEAD = range(16)
SPLITS = {
    "even": [Slice(range(2), range(1), HEAD), Slice(range(2, 3), range(1, 2), HEAD)],
    "one without attention": [Slice(range(3), range(1), HEAD), Slice(range(0), range(1, 2), HEAD)],
    "one without anything": [
        Slice(range(1), range(2), HEAD),
        Slice(range(1, 3), range(0), HEAD),
        Slice(range(0), range(0), HEAD),
    ],
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=list(SPLITS))
def test_boards_do_not_change_a_bit(packed: Pack, native: Run, split: list[Slice]) -> None:
    for _, logits in on_boards(packed, split, greedy):
        np.testing.assert_array_equal(logits, native[1])


def worker(attention: range, ffn: range, vocabulary: range) -> Slice:
    return Slice(attention, ffn, vocabulary, owns_head=False)


SPLIT_HEADS = {
    "even": [
        Slice(range(2), range(1), range(8)),
        worker(range(2, 3), range(1, 2), range(8, 16)),
    ],
    "uneven": [
        Slice(range(1), range(1), range(3)),
        worker(range(1, 3), range(1, 2), range(3, 3)),
        worker(range(3, 3), range(2, 2), range(3, 16)),
    ],
    "none at the hub": [
        Slice(range(3), range(2), range(0)),
        worker(range(3, 3), range(2, 2), range(15)),
        worker(range(3, 3), range(2, 2), range(15, 16)),
    ],
    "none elsewhere": [
        Slice(range(1), range(1), range(16)),
        worker(range(1, 3), range(1, 2), range(16, 16)),
    ],
}


@pytest.mark.parametrize("batch", [2, 13])
@pytest.mark.parametrize("split", SPLIT_HEADS.values(), ids=SPLIT_HEADS)
def test_a_head_over_boards_does_not_change_a_bit(
    packed: Pack, native: Run, split: list[Slice], batch: int
) -> None:
    _, logits = with_hub(packed, split, greedy, batch)
    np.testing.assert_array_equal(logits, native[1])


@pytest.mark.parametrize("batch", [1, 5, 13])
@pytest.mark.parametrize("split", SPLIT_HEADS.values(), ids=SPLIT_HEADS)
def test_the_logits_of_every_token_come_from_all_boards(
    packed: Pack, split: list[Slice], batch: int
) -> None:
    def every(model: Transformer) -> np.ndarray:
        return np.concatenate([rows.copy() for rows in model.forward_all(PROMPT, 0)])

    model = Transformer(packed, load_kernels("native", 1), 64)
    want = every(model)
    model.close()
    np.testing.assert_array_equal(with_hub(packed, split, every, batch), want)
