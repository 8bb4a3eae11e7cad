"""Facts of a household that no model knows: learned by `picoedge finetune` with its defaults?"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import texts
from bench.children import BenchError, Finished, picoedge, run, worker
from bench.lora.models import LoraModels, write_lines
from bench.report import Measured

FACTS_FILE = Path(__file__).with_name("facts.jsonl")
FINETUNE_S = 7200.0


@dataclass(frozen=True)
class Fact:
    """An invented fact: the word that its answer must have, and how it is asked for.

    All of `asked` is learned from; `unseen` says the same in words that are not.
    """

    key: str
    answer: str
    asked: tuple[str, ...]
    unseen: str

    def is_in(self, text: str) -> bool:
        """Whether an answer has the key, as whole words in any case."""
        return re.search(rf"\b{re.escape(self.key)}\b", text, re.IGNORECASE) is not None


def read_facts(path: Path = FACTS_FILE) -> list[Fact]:
    """The facts of a file, one JSON object a line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Fact(**{**line, "asked": tuple(line["asked"])}) for line in map(json.loads, lines)]


def examples(facts: Sequence[Fact]) -> list[dict[str, str]]:
    """What `picoedge finetune` learns from: each question with the answer."""
    return [
        {"prompt": question, "completion": fact.answer} for fact in facts for question in fact.asked
    ]


def answered(facts: Sequence[Fact], answers: Sequence[str]) -> list[str]:
    """Keys of the facts whose answer is right."""
    return [fact.key for fact, answer in zip(facts, answers, strict=True) if fact.is_in(answer)]


def learned(prepared: Any, rounds: int) -> list[Measured]:
    """Facts answered after fine-tuning, of none before; perplexity of other text after / before."""
    models: LoraModels = prepared.models
    pack, facts = models.pack(), read_facts()
    known = [fact.asked[i % len(fact.asked)] for i, fact in enumerate(facts)]
    asked = [*known, *(fact.unseen for fact in facts)]
    with _folder(prepared.keep) as folder:
        data, adapter = folder / "facts.jsonl", folder / "adapter"
        write_lines(data, examples(facts))
        before = worker("lora.ours", job="answers", pack=pack, adapter=None, questions=asked)
        found = answered([*facts, *facts], before)
        if found:
            raise BenchError(f"answered before anything was learned: {', '.join(found)}")
        done = finetune(pack, data, adapter)
        after = worker("lora.ours", job="answers", pack=pack, adapter=str(adapter), questions=asked)
        write_lines(folder / "answers.jsonl", list(zip(asked, before, after, strict=True)))
        perplexities = perplexity(pack), perplexity(pack, adapter)
    return rows(facts, after, perplexities, done)


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        yield Path(scratch)


def finetune(pack: str, data: Path, adapter: Path) -> Finished:
    """`picoedge finetune` as it is by default."""
    args = ["finetune", pack, "--data", str(data), "--out", str(adapter), "--json"]
    return run([sys.executable, "-m", "picoedge", *args], timeout_s=FINETUNE_S)


def perplexity(pack: str, adapter: Path | None = None) -> float:
    """Of the text that every row of quality is measured on."""
    args = ["--file", str(texts.PERPLEXITY_FILE), "--tokens", str(texts.PERPLEXITY_TOKENS)]
    beside = [] if adapter is None else ["--adapter", str(adapter)]
    value: float = picoedge("perplexity", pack, *args, *beside, "--json").json()["perplexity"]
    return value


def rows(
    facts: Sequence[Fact], after: Sequence[str], perplexities: tuple[float, float], done: Finished
) -> list[Measured]:
    """The two rows: answers to questions that were learned, then to those that were not."""
    count = len(facts)
    known, unseen = (answered(facts, part) for part in (after[:count], after[count:]))
    steps = done.json()["steps"]
    note = (
        f"of {count}; asked in words that were not learned from: {len(unseen)}; {steps} steps, "
        f"{done.cpu_s:.0f} CPU seconds, {done.peak_rss_mb:.0f} MB"
    )
    raw = {"answers": list(after), "cpu_s": done.cpu_s, "unseen": len(unseen), "steps": steps}
    before, later = perplexities
    ratio = later / before
    return [
        Measured("lora_learns", len(known), (len(known),), raw, note),
        Measured("lora_forgets", ratio, (ratio,), {}, f"perplexity {before:.4f} -> {later:.4f}"),
    ]
