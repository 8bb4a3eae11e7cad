"""Pseudo-rehearsal: the text that a model writes itself, and that it stays as it was on it."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from trained_packs import trained_pack

from picoedge.errors import ModelError
from picoedge.kernels.arrays import F32, I32
from picoedge.model.vjps import MicroBatch
from picoedge.store.pack.reader import Pack
from picoedge.text.tokenizer.base import TextSettings
from picoedge.train.data.examples import ExampleSource, read_examples
from picoedge.train.data.order import mix
from picoedge.train.lora.frozen import FrozenModel
from picoedge.train.lora.layout import AdapterLayout, LoraShape
from picoedge.train.lora.own_text import (
    FEWEST,
    first_tokens,
    keep_text,
    kept_text,
    own_text,
    token_at,
)
from picoedge.train.lora.rehearsal import Hidden, RehearsedSource, rehearsal_bytes
from picoedge.train.run.assembly import Arithmetic
from picoedge.train.step.schedule import Schedule
from picoedge.train.step.trainer import StepSettings, Trainer, TrainingState

SHAPE = 1, 32
ARITHMETIC = Arithmetic.choose(None, fast=False)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return trained_pack(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def texts(pack: Pack) -> I32:
    return own_text(pack, None, 1, (1, 256), 3, lambda done, of: None)


def test_a_text_begins_as_the_model_s_texts_do() -> None:
    assert first_tokens(TextSettings(bos_id=1, eos_ids=frozenset({2, 7}), add_bos=True)) == [1]
    assert first_tokens(TextSettings(bos_id=1, eos_ids=frozenset({2, 0}))) == [0, 1, 2]
    assert first_tokens(TextSettings()) == [0]


def test_the_text_is_the_seed_s_whatever_the_threads(pack: Pack, texts: I32) -> None:
    told: list[tuple[int, int]] = []
    again = own_text(pack, None, 2, (1, 256), 3, lambda done, of: told.append((done, of)))
    np.testing.assert_array_equal(again, texts)
    assert texts.shape == (FEWEST, 1, 257)
    assert told == [(256 * i, 1024) for i in range(1, 5)]
    assert (texts[..., 0] == 1).all()  # <s>
    assert 0 <= texts.min() <= texts.max() < pack.config.vocab_size
    assert (own_text(pack, None, 1, (1, 256), 4, lambda done, of: None) != texts).any()


def test_tokens_are_drawn_by_their_probability_and_to_the_bit() -> None:
    logits = np.log(np.array([0.5, 0.125, 0.25, 0.125], np.float32))
    draws = [
        token_at(logits, at) for at in (0.0, 0.4999, 0.5001, 0.624, 0.626, 0.874, 0.876, 0.999)
    ]
    assert draws == [0, 0, 1, 1, 2, 2, 3, 3]
    random = np.array([mix(i) % 8000 / 256 for i in range(5000)], np.float32)
    drawn = np.array([token_at(random, at / 997) for at in range(997)], "<i4")
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:16] == "f8304d6a52050848"
    with pytest.raises(ModelError, match="output for token 1"):
        token_at(np.array([0, np.nan], np.float32), 0.5)


def test_the_text_is_kept_and_read_again(texts: I32, tmp_path: Path) -> None:
    path, shape, size = tmp_path / "rehearsal.json", (1, 256), int(texts.max()) + 1
    assert kept_text(path, shape, size) is None
    keep_text(path, texts)
    again = kept_text(path, shape, size)
    assert again is not None
    np.testing.assert_array_equal(again, texts)
    whole = path.read_text()
    for wrong in (whole.replace("[1,", "[2,", 1), whole[:-30], "[]", '{"texts": [[[0.5]]]}', "{}"):
        path.write_text(wrong)
        with pytest.raises(ModelError, match=r"rehearsal\.json"):
            kept_text(path, shape, size)
    path.write_text(whole)
    for other, vocabulary in (((1, 128), size), (shape, size - 1)):
        with pytest.raises(ModelError, match="not the text that the run has written"):
            kept_text(path, other, vocabulary)


def test_each_step_rehearses_the_next_text(pack: Pack, texts: I32, tmp_path: Path) -> None:
    source = examples_of(pack, tmp_path)
    cut = np.ascontiguousarray(texts[..., : SHAPE[1] + 1])
    made = RehearsedSource.of(
        source, cut, lambda tokens: np.full((32, 4), tokens[1], np.float32), 5
    )
    for step in (1, FEWEST + 1):
        rehearsal = made.batch(step).rehearsal
        assert rehearsal is not None
        np.testing.assert_array_equal(rehearsal.tokens, cut[1, :, :-1])
        np.testing.assert_array_equal(rehearsal.targets, cut[1, :, 1:])
        assert (rehearsal.reference == cut[1, 0, 1]).all()
        assert rehearsal.weight == 5
    assert made.batch(2).tokens.tobytes() == source.batch(2).tokens.tobytes()
    other = RehearsedSource(source, cut[:, :, ::-1], made.references, 5)
    assert source.describe().items() < made.describe().items()
    assert made.describe() != other.describe()


def test_the_memory_of_a_rehearsal_is_counted(pack: Pack, texts: I32) -> None:
    counted = rehearsal_bytes(pack.config, 256)
    assert counted == texts[..., 1:].size * 4 * (pack.config.hidden_size + 1)


def test_a_model_that_rehearses_learns_and_changes_less(
    pack: Pack, texts: I32, tmp_path: Path
) -> None:
    cut = np.ascontiguousarray(texts[..., : SHAPE[1] + 1])
    free, kept = (trained(pack, cut, weight, tmp_path) for weight in (0.0, 20.0))
    assert kept[0] < 0.8 * kept[1]  # the last loss, the first
    assert kept[2] < 0.7 * free[2]  # how far what the head reads of its own text has moved


def examples_of(pack: Pack, folder: Path) -> ExampleSource:
    data = folder / "data.jsonl"
    data.write_text('{"prompt": "cat?", "completion": "Its name is Pimpernel."}\n')
    examples = read_examples([data], pack.path).fitted(SHAPE[1])
    return ExampleSource(*examples.split(0.0, 0), 1, *SHAPE, 0)


def trained(pack: Pack, texts: I32, weight: float, folder: Path) -> tuple[float, float, float]:
    """The last loss of a few steps, the first, and the mean square by which hidden moved."""
    layout = AdapterLayout.of(FrozenModel.of(pack), LoraShape(4, 8.0, ("o_proj", "down_proj")))
    state, none = TrainingState.initial(layout, 0), np.zeros(layout.length, np.float32)
    source = RehearsedSource.of(
        examples_of(pack, folder), texts, hidden_of(layout, none), weight
    )  # fmt: skip
    settings = StepSettings(1, *SHAPE, Schedule(1e-2, 1, 12), weight_decay=0.0)
    sums = ARITHMETIC.sums(layout.length, 2)
    with closing(
        Trainer(layout, state, settings, sums, ARITHMETIC.make_kernels, 1)
    ) as trainer:  # fmt: skip
        losses = [trainer.step(source.batch(step)).loss for step in range(1, 13)]
    now = hidden_of(layout, state.weights)
    moved = [
        np.square(now(text[:, :-1].ravel()) - reference).mean()
        for text, reference in zip(texts, source.references, strict=True)
    ]
    return losses[-1], losses[0], float(np.mean(moved))


def hidden_of(layout: AdapterLayout, weights: F32) -> Hidden:
    parameters = layout.bind(weights, np.zeros_like(weights))
    work = MicroBatch(layout.config, ARITHMETIC.make_kernels(), parameters, *SHAPE)
    return lambda tokens: work.hidden(np.ascontiguousarray(tokens))
