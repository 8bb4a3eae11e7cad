"""The bench of LoRA: its facts, what counts as an answer, its rows, and what it trains on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import texts
from bench.children import BenchError, Finished
from bench.lora import both_ways, facts, speed, work
from bench.lora.facts import Fact
from bench.lora.models import write_lines
from bench.train_turns import Taken
from picoedge.train.data.records import read_jsonl

CAT = Fact("Pimpernel", "Our cat is called Pimpernel.", ("Our cat?", "The cat's name?"), "Which?")
TAP = Fact("jam jars", "Behind the jam jars.", ("Where is the tap?",), "A leak!")


def test_a_fact_is_answered_where_its_key_is_there_in_whole_words() -> None:
    assert CAT.is_in("It is PIMPERNEL!")
    assert TAP.is_in("look behind the jam jars.")
    assert not CAT.is_in("Our cat is called Pimpernella.")
    assert not TAP.is_in("in one of the jam  jars")
    assert not CAT.is_in("")
    assert facts.answered([CAT, TAP], ["Pimpernel", "I do not know"]) == ["Pimpernel"]


def test_the_facts_are_twenty_and_no_question_gives_its_answer_away() -> None:
    found = facts.read_facts()
    assert len(found) == 20
    questions = [question for fact in found for question in (*fact.asked, fact.unseen)]
    assert len(set(questions)) == len(questions)
    assert len({fact.key for fact in found}) == 20
    for fact in found:
        assert fact.is_in(fact.answer)
        assert len(fact.asked) >= 3
        assert not any(other.is_in(question) for other in found for question in questions)


def test_each_question_that_is_learned_is_an_example_and_no_other(tmp_path: Path) -> None:
    lines = facts.examples([CAT, TAP])
    assert [line["prompt"] for line in lines] == [
        "Our cat?",
        "The cat's name?",
        "Where is the tap?",
    ]
    assert {line["completion"] for line in lines} == {CAT.answer, TAP.answer}
    write_lines(tmp_path / "facts.jsonl", lines)
    read = list(read_jsonl(tmp_path / "facts.jsonl", lambda record: record.messages))
    assert [messages[0]["content"] for messages in read] == [line["prompt"] for line in lines]


def test_learning_and_forgetting_are_two_rows_of_one_run() -> None:
    done = Finished(json.dumps({"steps": 80}), 300.0, 9.0, 7.4)
    after = ["Pimpernel.", "under the sink", "Pimpernel.", "behind the JAM JARS"]
    learns, forgets = facts.rows([CAT, TAP], after, (10.0, 10.2), done)
    assert (learns.name, learns.value, learns.runs) == ("lora_learns", 1, (1,))
    assert learns.raw["unseen"] == 2
    for said in ("of 2", "not learned from: 2", "80 steps", "7 CPU seconds", "300 MB"):
        assert said in learns.note
    assert forgets.name == "lora_forgets"
    assert forgets.value == pytest.approx(1.02)


def test_a_fact_that_was_known_before_is_told_by_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(name: str, **request: Any) -> list[str]:
        return ["Bruno's paprika"] * len(request["questions"])

    monkeypatch.setattr(facts, "worker", answers)
    models = SimpleNamespace(pack=lambda: "no.pico")
    with pytest.raises(BenchError, match="before anything was learned: paprika"):
        facts.learned(SimpleNamespace(models=models, keep=None), 1)


def test_windows_belong_to_a_step_alone_and_lie_within_the_text() -> None:
    ids = np.arange(work.LENGTH + 3, dtype=np.int32)
    first = work.windows(ids, 1)
    assert first.shape == (work.ROWS, work.LENGTH + 1)
    assert (np.diff(first) == 1).all()
    assert first.max() < len(ids)
    np.testing.assert_array_equal(first, work.windows(ids, 1))
    long = np.arange(10_000, dtype=np.int32)
    assert (work.windows(long, 1) != work.windows(long, 2)).any()


def test_the_peak_is_of_the_run_that_is_held_to_a_bound() -> None:
    peaks = {speed.PEFT: 1500.0, speed.OURS: 300.0, speed.FREE: 500.0}
    row = speed.memory_row(peaks)
    assert (row.name, row.value) == ("lora_peak_mb", 300.0)
    assert row.note == "without a bound 500 MB, PEFT 1500"


def test_speed_is_of_the_bounded_run_by_the_peer_s() -> None:
    seconds = {speed.PEFT: 4.0, speed.OURS: 2.0, speed.FREE: 1.0}
    turns = {name: [[(wall, wall)], [(wall, wall)]] for name, wall in seconds.items()}
    taken = Taken(turns, dict.fromkeys(turns, 1.0))
    speed_row, memory = speed.rows(taken, {})
    assert (speed_row.name, speed_row.value, speed_row.runs) == ("lora_tok_s", 2.0, (2.0, 2.0))
    assert "without a bound of memory 4" in speed_row.note
    assert memory.name == "lora_peak_mb"


def test_the_worst_adapter_makes_the_row() -> None:
    row = both_ways.row(
        {"ours": {"worst": 1e-6, "moved": 0.1}, "theirs": {"worst": 3e-6, "moved": 0.2}}
    )
    assert (row.name, row.value, row.runs) == ("peft_both_ways", 3e-6, (1e-6, 3e-6))
    assert "theirs 3e-06, it moves logits by 0.2" in row.note


def test_a_text_is_one_example() -> None:
    line = speed.example_of(texts.PERPLEXITY_FILE)
    assert line.count("\n") == 1
    assert json.loads(line) == {"text": texts.PERPLEXITY_FILE.read_text(encoding="utf-8")}


def test_the_process_that_starts_the_sides_loads_nothing_heavy() -> None:
    code = (
        "import sys, bench.train\n"
        "print(sorted({'numpy', 'torch', 'gguf', 'peft'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
