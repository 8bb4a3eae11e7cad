"""Training on packed examples: each has the loss that it has alone."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from training_material import tiny_config
from training_text import english

from picoedge.kernels.loader import load_training_kernels
from picoedge.train.data.examples import Examples, ExampleSource, read_examples
from picoedge.train.data.tokenizer import train_tokenizer, write_tokenizer
from picoedge.train.state.layout import Layout
from picoedge.train.step.batch import NO_TARGET, Batch
from picoedge.train.step.schedule import Schedule
from picoedge.train.step.trainer import PlainSums, StepSettings, Trainer, TrainingState

LENGTH, STEPS = 128, 6
LAYOUT = Layout.of(tiny_config("llama", vocab_size=512))
SETTINGS = StepSettings(2, 1, LENGTH, Schedule(3e-3, 1, STEPS))


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    write_tokenizer(train_tokenizer([english(3000)], 512), tmp_path, conversations=True)
    words = english(400).split()
    lines = [
        json.dumps({"prompt": words[i], "completion": " ".join(words[i : i + i % 7 + 1])})
        for i in range(30)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return read_examples([tmp_path / "a.jsonl"], tmp_path).fitted(LENGTH)


def trainer() -> Trainer:
    state = TrainingState.initial(LAYOUT, 0)
    state.weights[:] *= 4  # so that losses differ
    return Trainer(LAYOUT, state, SETTINGS, PlainSums(LAYOUT.length), load_training_kernels, 2)


def alone(examples: Examples, number: int) -> Batch:
    """A batch of one example."""
    tokens = np.zeros((1, 1, LENGTH), np.int32)
    targets = np.full((1, 1, LENGTH), NO_TARGET, np.int32)
    ids, counted = examples.example(number)
    tokens[0, 0, : len(ids) - 1] = ids[:-1]
    targets[0, 0, : len(ids) - 1] = np.where(counted[1:], ids[1:], NO_TARGET)
    return Batch(tokens, targets)


def test_examples_that_share_a_sequence_have_their_own_losses(examples: Examples) -> None:
    source = ExampleSource(examples, examples, 2, 1, LENGTH, seed=1)
    assert source.sequences_per_epoch < len(examples)
    with closing(trainer()) as made:
        packed = sum(made.loss(batch) * batch.targets_counted for batch in source.held_out)
        each = [alone(examples, number) for number in range(len(examples))]
        apart = sum(made.loss(batch) * batch.targets_counted for batch in each)
    assert packed == pytest.approx(apart, rel=1e-5)


def test_steps_learn_the_answers(examples: Examples) -> None:
    train, _ = examples.split(0, seed=1)
    source = ExampleSource(train, train, 2, 1, LENGTH, seed=1)
    with closing(trainer()) as made:
        before = made.loss(source.held_out[0])
        for step in range(1, STEPS + 1):
            made.step(source.batch(step))
        assert made.loss(source.held_out[0]) < before - 0.1
