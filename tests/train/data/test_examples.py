"""Examples to fine-tune on: read, cut, split, packed into batches in which none sees another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_text import english

from picoedge.errors import DataError
from picoedge.text.template.template import ChatTemplate, encode_chat
from picoedge.text.tokenizer.load import load_tokenizer
from picoedge.train.data.examples import Examples, ExampleSource, read_examples
from picoedge.train.data.source import TokenSource
from picoedge.train.data.tokenizer import train_tokenizer, write_tokenizer
from picoedge.train.step.batch import NO_TARGET

LENGTH = 160


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    write_tokenizer(train_tokenizer([english(4000)], 512), folder, conversations=True)
    return folder


def answer(number: int, words: int = 4) -> dict[str, Any]:
    said = f"answer {number} " + "word " * (number % words)
    return {"prompt": f"Question {number}?", "completion": said}


def read(folder: Path, pack: Path, records: Sequence[Any]) -> Examples:
    path = folder / "data.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return read_examples([path], pack)


def test_forms_may_be_mixed(tmp_path: Path, pack: Path) -> None:
    talk = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    examples = read(tmp_path, pack, [answer(1), {"messages": talk}, "", {"text": "Some text."}])
    tokenizer, template = load_tokenizer(pack), ChatTemplate.load(pack)
    assert template is not None
    assert len(examples) == 3
    tokens, counted = examples.example(1)
    prompt = encode_chat(template, tokenizer, talk[:1])
    assert tokens[: len(prompt)].tolist() == prompt
    assert not counted[: len(prompt)].any()
    assert counted[len(prompt) :].all()
    assert tokenizer.decode(tokens[counted].tolist(), skip_special=False) == "A<|im_end|>"
    tokens, counted = examples.example(2)
    assert tokenizer.decode(tokens.tolist(), skip_special=False) == "<s>Some text.</s>"
    assert counted[1:].all()
    assert examples.lines.tolist() == [0, 1, 2]


def test_faults_are_told_by_line(tmp_path: Path, pack: Path) -> None:
    records = [
        answer(1), "{", {"messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": "critic", "content": "x"}]}, {"text": " "},
        {"prompt": "x", "completion": " "}, answer(2),
    ]  # fmt: skip
    with pytest.raises(DataError) as caught:
        read(tmp_path, pack, records)
    for part in (
        "line 2: not valid JSON", "line 3: no answer in it", "line 4: unknown role 'critic'",
        "line 5: no text in it", "line 6: an answer without text",
    ):  # fmt: skip
        assert part in caught.value.message


def test_no_example_and_other_files_are_refused(tmp_path: Path, pack: Path) -> None:
    with pytest.raises(DataError, match="no example in"):
        read(tmp_path, pack, ["", "  "])
    for name, message in (("a.json", "not a file .jsonl"), ("gone.jsonl", "does not exist")):
        with pytest.raises(DataError, match=message):
            read_examples([tmp_path / name], pack)


def test_longer_examples_are_cut_and_counted(tmp_path: Path, pack: Path) -> None:
    long_question = {"prompt": "word " * 200, "completion": "lost"}
    long_answer = {"prompt": "Q", "completion": "word " * 200}
    examples = read(
        tmp_path, pack, [answer(1), long_question, long_answer, {"text": "word " * 200}]
    )
    fitted = examples.fitted(LENGTH)
    assert fitted.lengths.max() == LENGTH
    assert "3 of 4 examples are longer than the 160 tokens" in fitted.notes[0]
    assert "1 of them left out" in fitted.notes[1]
    assert set(fitted.lines.tolist()) == {0, 2, 3}
    whole, _ = examples.example(3)
    pieces = [fitted.example(i)[0] for i in np.flatnonzero(fitted.lines == 3)]
    assert len(pieces) > 1
    # Each goes on with the last token of the one before, so that every token is learned once.
    joined = [pieces[0][:1], *(piece[1:] for piece in pieces)]
    assert np.concatenate(joined).tolist() == whole.tolist()
    assert examples.fitted(4096).notes == ()
    with pytest.raises(DataError, match="none of 1 examples has an answer within 160 tokens"):
        read(tmp_path, pack, [long_question]).fitted(LENGTH)


def test_lines_are_held_out_by_the_seed(tmp_path: Path, pack: Path) -> None:
    examples = read(tmp_path, pack, [answer(i) for i in range(100)])
    train, held_out = examples.split(0.1, seed=1)
    assert len(held_out) == 10
    assert not set(train.lines.tolist()) & set(held_out.lines.tolist())
    assert len(train) == 90
    assert examples.split(0.1, seed=2)[1].lines.tolist() != held_out.lines.tolist()
    assert len(examples.split(0, seed=1)[1]) == 0
    few, none = read(tmp_path, pack, [answer(i) for i in range(20)]).split(0.1, seed=1)
    assert (len(few), len(none)) == (20, 0)


def counted_in(source: ExampleSource, steps: int) -> list[tuple[int, ...]]:
    """Learned tokens of each text in the batches of steps."""
    found = []
    for step in range(1, steps + 1):
        batch = source.batch(step)
        assert batch.documents is not None
        for tokens, targets, documents in zip(
            *(each.reshape(-1, LENGTH) for each in (batch.tokens, batch.targets, batch.documents)),
            strict=True,
        ):
            for number in np.unique(documents):
                own = targets[documents == number]
                if (own != NO_TARGET).any():
                    found.append(tuple(own[own != NO_TARGET].tolist()))
                    follow = tokens[documents == number][1:]
                    assert (own[:-1] == follow)[own[:-1] != NO_TARGET].all()
    return found


def test_batches_hold_every_answer_once_an_epoch_and_steps_need_no_state(
    tmp_path: Path, pack: Path
) -> None:
    examples = read(tmp_path, pack, [answer(i) for i in range(60)]).fitted(LENGTH)
    train, held_out = examples.split(0.1, seed=1)
    source = ExampleSource(train, held_out, 2, 1, LENGTH, seed=4)
    known: TokenSource = source
    assert known.tokens_per_epoch == train.targets
    epoch = source.sequences_per_epoch
    assert epoch < len(train) / 2, "short examples share sequences"
    want = sorted(
        tuple(ids[counted].tolist()) for ids, counted in map(train.example, range(len(train)))
    )
    assert sorted(counted_in(ExampleSource(train, held_out, 1, 1, LENGTH, 4), epoch)) == want
    batch = known.batch(3)
    assert batch.tokens.shape == (2, 1, LENGTH)
    again = ExampleSource(train, held_out, 2, 1, LENGTH, seed=4)
    assert again.batch(3).targets.tobytes() == batch.targets.tobytes()
    assert again.describe() == known.describe()
    other = ExampleSource(train, held_out, 2, 1, LENGTH, seed=5)
    assert other.batch(3).targets.tobytes() != batch.targets.tobytes()
    for step in range(1, 2 * epoch):
        assert known.batch(step).targets_counted > 0
    assert sum(each.targets_counted for each in known.held_out) == held_out.targets
    assert all(each.tokens.shape[1:] == (1, LENGTH) for each in known.held_out)


def test_other_data_has_another_record(tmp_path: Path, pack: Path) -> None:
    def record(records: Sequence[Any]) -> Any:
        examples = read(tmp_path, pack, records)
        return ExampleSource(*examples.split(0, 1), 1, 1, 512, 0).describe()

    one = record([answer(1), answer(2)])
    assert one == record([answer(1), answer(2)])
    assert one["data"] != record([answer(1), answer(3)])["data"]


def test_all_files_with_faults_are_told_at_once(tmp_path: Path, pack: Path) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    for path, text in zip(paths, ("{", json.dumps(answer(1)), "\n\n[]"), strict=True):
        path.write_text(text)
    with pytest.raises(DataError, match=r"a\.jsonl: line 1: not valid JSON; .*c\.jsonl: line 3: "):
        read_examples(paths, pack)


def test_a_sequence_holds_the_longest_example(tmp_path: Path, pack: Path) -> None:
    short, long = (read(tmp_path, pack, [answer(1), {"text": "word " * n}]) for n in (5, 300))
    assert short.sequence_length(1024) == 256
    assert short.sequence_length(100) == 100
    assert long.sequence_length(4096) % 64 == 0
    assert 0 <= long.sequence_length(4096) - long.lengths.max() < 64


def test_a_template_that_writes_the_day_gives_the_same_tokens_tomorrow(
    tmp_path: Path, pack: Path
) -> None:
    dated = tmp_path / "dated"
    shutil.copytree(pack, dated)
    template = dated / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %B %Y') }} " + template.read_text())
    tokens, _ = read(tmp_path, dated, [answer(1)]).example(0)
    assert "01 January 2025" in load_tokenizer(dated).decode(tokens.tolist())
