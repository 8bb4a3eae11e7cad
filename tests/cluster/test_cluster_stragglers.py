"""A board that becomes slow in a session, and quick again: its share goes, and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cluster_boards import ClusterOf, cluster_of, measured_as, until

from picoedge.cluster.daemon_reports import DaemonReports
from picoedge.cluster.load import load_over_boards
from picoedge.cluster.resilient_model import ClusterModel
from picoedge.engine.open import load_model
from picoedge.engine.options import OpenOptions
from picoedge.jobs import stragglers
from picoedge.jobs.progress_page import Work
from picoedge.jobs.stragglers import CONFIRMATIONS, SAMPLE_TOKENS, Sample, StragglerDetector
from picoedge.planner.cluster_plan import ClusterOptions
from picoedge.store.pack.reader import Pack

OPTIONS = OpenOptions(threads=1, n_ctx=256, cluster=ClusterOptions())
PROMPT = [1, 2, 3, 4, 5]
QUICK_S, SLOW_S = 0.05, 0.5  # that b2 takes to compute a token


@pytest.fixture(scope="module")
def cluster(smollm2_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOf]:
    with cluster_of(tmp_path_factory.mktemp("pace"), 2) as made:
        made.shelve(smollm2_pack)
        yield made


class Weather:
    """Measurements of b2 are made up: its time, and the others' waiting for it."""

    def __init__(self, patch: pytest.MonkeyPatch, key: str) -> None:
        self._key = key
        self.took_s, self.left = QUICK_S, 1.0  # of its speed, as waiting for it tells
        self._work = Work()
        patch.setattr(StragglerDetector, "add", self._slower)
        patch.setattr(DaemonReports, "work_since", self._work_since)

    def _slower(self, sample: Sample, planned_s: object) -> dict[int, float]:
        left, self.left = self.left, 1.0
        return {1: left} if left < 1 else {}

    def _work_since(self, since_s: float) -> dict[str, Work]:
        work = self._work
        self._work = Work(work.tokens + SAMPLE_TOKENS, work.compute_s + SAMPLE_TOKENS * self.took_s)
        return {self._key: self._work}

    def strikes(self, left: float) -> None:
        """It has become slow."""
        self.took_s, self.left = SLOW_S, left


@pytest.fixture
def weather(cluster: ClusterOf, monkeypatch: pytest.MonkeyPatch) -> Weather:
    cluster[1].lend_environ(monkeypatch)
    measured_as(monkeypatch, 1.0, 1.0)
    return Weather(monkeypatch, cluster[1].seen()["b2"]["key"])


class Text:
    """Greedy tokens of a model."""

    def __init__(self, model: ClusterModel) -> None:
        self.model, self.tokens = model, [*PROMPT]
        self._logits = model.forward(PROMPT, 0)

    def go_on(self, looks: int) -> None:
        """So many looks at the pace."""
        for _ in range(looks * SAMPLE_TOKENS):
            self.tokens.append(int(self._logits.argmax()))
            self._logits = self.model.forward(self.tokens[-1:], len(self.tokens) - 1)


def ffn_shards(model: ClusterModel) -> list[int]:
    return [len(share.part.ffn) for share in model.plan.chosen.shares]


def test_a_board_that_is_quick_again_has_its_share_again(
    smollm2_pack: Path, weather: Weather, capfd: pytest.CaptureFixture[str]
) -> None:
    pack = Pack.open(smollm2_pack)
    with closing(load_over_boards(pack, OPTIONS)) as model:
        text = Text(model)
        text.go_on(4)
        assert ffn_shards(model) == [3, 3]
        weather.strikes(0.5)
        text.go_on(4)
        assert ffn_shards(model) == [4, 2]
        weather.took_s = QUICK_S
        text.go_on(CONFIRMATIONS - 1)
        weather.took_s = SLOW_S  # it was but a moment
        text.go_on(2)
        assert ffn_shards(model) == [4, 2]
        weather.took_s = QUICK_S
        text.go_on(4)
        assert ffn_shards(model) == [3, 3]
    told = capfd.readouterr().err
    assert told.count("b2 has become slow: the shards are redistributed") == 1
    assert told.count("b2 is quick again: the shards are redistributed") == 1
    with closing(load_model(pack, OPTIONS)) as alone:
        assert text.tokens == greedy(alone, len(text.tokens))


def greedy(model: object, count: int) -> list[int]:
    tokens = [*PROMPT]
    logits = model.forward(tokens, 0)  # type: ignore[attr-defined]
    while len(tokens) < count:
        tokens.append(int(logits.argmax()))
        logits = model.forward(tokens[-1:], len(tokens) - 1)  # type: ignore[attr-defined]
    return tokens


def test_a_board_that_was_left_out_is_tried_again_with_a_later_answer(
    smollm2_pack: Path,
    weather: Weather,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stragglers, "REST_S", 0.0)
    with closing(load_over_boards(Pack.open(smollm2_pack), OPTIONS)) as model:
        text = Text(model)
        text.go_on(3)
        weather.strikes(0.01)
        text.go_on(3)
        assert model.boards == 1
        text.go_on(2)
        assert model.boards == 1  # not in the middle of an answer
        model.forward(PROMPT, len(text.tokens))
        assert ffn_shards(model) == [3, 3]
        text.go_on(5)  # but it is as slow as before
        assert model.boards == 1
        weather.took_s = QUICK_S
        model.forward(PROMPT, len(text.tokens))
        text.go_on(5)
        assert ffn_shards(model) == [3, 3]
    told = capfd.readouterr().err
    assert told.count("b2 has become slow: the shards are redistributed") == 2
    assert told.count("b2 was slow and is tried again: the shards are redistributed") == 2


def test_a_group_knows_what_its_workers_have_done(
    cluster: ClusterOf, smollm2_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster[1].lend_environ(monkeypatch)
    how = OpenOptions(threads=1, n_ctx=256, cluster=ClusterOptions(split=(1.0, 1.0)))
    with closing(load_over_boards(Pack.open(smollm2_pack), how)) as model:
        text, at = Text(model), model._arrangement
        assert at is not None
        group = at.group
        assert group is not None
        since_s = time.monotonic()
        assert group.daemons.work_since(since_s + 1e6) == {}

        def worked(tokens: int) -> list[Work]:
            # A report may be older than the pass: it comes, but not with these tokens.
            return [w for w in group.daemons.work_since(since_s).values() if w.tokens == tokens]

        (first,) = until(lambda: worked(len(PROMPT)), "b2 has computed the prompt")
        text.go_on(2)
        (second,) = until(lambda: worked(len(text.tokens)), "b2 has computed all of them")
        assert first.compute_s < second.compute_s
