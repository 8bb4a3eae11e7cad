"""`picoedge finetune`: an adapter from examples, the same bits however computed, and refusals."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shelf_models
from cli_runs import Run

from picoedge.cli import training
from picoedge.store.adapter_refusals import ADAPTER_WEIGHTS
from picoedge.store.adapters import read_adapter
from picoedge.train.lora import run as lora_run
from picoedge.train.lora.run import LoraRun
from picoedge.train.run.log import read_log
from picoedge.train.state.checkpoints import Saved

SHORT = ("--steps", "6", "--context", "64", "--batch-size", "4", "--rank", "4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "facts.jsonl"
    lines = [{"prompt": f"{i} and {i}?", "completion": f"{2 * i}."} for i in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def weights(folder: Path) -> bytes:
    return (folder / ADAPTER_WEIGHTS).read_bytes()


def test_threads_and_memory_change_no_bit_and_the_loss_falls(
    run: Run, pack: Path, data: Path, tmp_path: Path
) -> None:
    ran = run(
        "finetune", pack, "--data", data, "--out", tmp_path / "one", *SHORT, "-t", 1, "--json"
    )
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)
    assert facts["steps"] == facts["written_step"] == 6
    adapter = read_adapter(tmp_path / "one")
    assert (adapter.rank, adapter.alpha, len(adapter.targets)) == (4, 8.0, 7)
    assert all(np.any(b) for _, b in adapter.matrices.values())
    losses = [
        line["loss"] for line in read_log(tmp_path / "one.run" / "log.jsonl") if "loss" in line
    ]
    assert losses[-1] < losses[0]
    for name in ("about ", "of memory", "Ctrl-C saves", "picoedge chat"):
        assert name in ran.err
    ran = run("finetune", pack, "--data", data, "--out", tmp_path / "two", *SHORT, "-t", 2)
    assert ran.code == 0, ran.err
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


class StopAfter:
    """In place of StopRequest: a signal that comes before the fourth step."""

    number = 2

    def __init__(self, message: str) -> None:
        self._asked = 0

    def __enter__(self) -> StopAfter:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def __call__(self) -> bool:
        self._asked += 1
        return self._asked > 3


def test_a_stopped_run_goes_on_to_the_same_bits(
    run: Run, pack: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "mine"
    more = ("--data", data, *SHORT, "--targets", "q,v")
    assert run("finetune", pack, *more, "--out", whole).code == 0
    with monkeypatch.context() as patched:
        patched.setattr(training, "StopRequest", StopAfter)
        ran = run("finetune", pack, *more, "--out", out, "--memory", "2G", "-t", 2)
    assert ran.code == 130
    assert "saved after step 3 of 6" in ran.err
    words = ["picoedge", "finetune", str(pack), "--data", str(data), "--out", str(out), "--resume"]
    again = shlex.join([*words, "--memory", "2048M", "--threads", "2"])
    assert f"Go on with: {again}" in ran.err
    assert not out.exists()
    ran = run("finetune", pack, *more, "--out", out)
    assert (ran.code, "holds a run already" in ran.err) == (2, True)
    ran = run("finetune", pack, "--data", data, "--out", out, "--resume", "--rank", 8)
    assert (ran.code, "--rank 8 is not the run's, which has 4" in ran.err) == (2, True)
    other = shelf_models.packed_tiny(tmp_path)
    ran = run("finetune", other, "--data", data, "--out", out, "--resume")
    assert (ran.code, "of another model" in ran.err) == (2, True)
    edited, moved = tmp_path / "edited.jsonl", tmp_path / "moved.jsonl"
    edited.write_text(data.read_text().replace("22.", "23."))
    ran = run("finetune", pack, "--data", edited, "--out", out, "--resume")
    assert (ran.code, "the examples are not those of this run" in ran.err) == (1, True)
    moved.write_bytes(data.read_bytes())
    with monkeypatch.context() as patched:
        patched.setattr(lora_run, "own_text", None)  # the run has its own
        ran = run("finetune", pack, "--data", moved, "--out", out, "--resume", "-t", 1)
    assert ran.code == 0, ran.err
    assert weights(out) == weights(whole)


def test_a_run_is_repeated_by_its_config_and_shows_what_it_learns(
    run: Run, pack: Path, data: Path, tmp_path: Path
) -> None:
    one, two, plot = tmp_path / "one", tmp_path / "two", tmp_path / "curve.svg"
    asked = ("--prompt", "5 and 5?", "--plot", plot, "--patience", 3, "--held-out", 0.2)
    ran = run("finetune", pack, "--data", data, "--out", one, *SHORT, *asked)
    assert ran.code == 0, ran.err
    assert plot.read_bytes().startswith(b"<?xml")
    config = tmp_path / "one.run" / "config.toml"
    assert "patience = 3" in config.read_text()
    samples = [
        line["sample"] for line in read_log(config.with_name("log.jsonl")) if "sample" in line
    ]
    assert len(samples) == 6
    assert all(sample.startswith("5 and 5? ") for sample in samples)
    ran = run("finetune", pack, "--config", config, "--out", two)
    assert ran.code == 0, ran.err
    assert weights(one) == weights(two)
    for args, told in (
        (("--out", tmp_path / "three"), "there are no examples to learn from (name them with"),
        (("--out", one, "--resume", "--config", config), "--config and --resume are both given"),
        (("--out", two, "--data", data, "--plot", "c.gif"), "end in .png or .svg"),
        (("--out", two, "--config", tmp_path / "no.toml"), "check the path of --config"),
    ):
        ran = run("finetune", pack, *args)
        assert ran.code != 0
        assert told in ran.err


def test_the_best_weights_are_those_of_the_step_that_was_best() -> None:
    """An older file stays where the disk had no room for the best."""
    kept: Any = SimpleNamespace(
        read_best=lambda: Saved({"weights": np.ones(4, np.float32)}, {"step": 2})
    )
    run: Any = SimpleNamespace(folder=kept, layout=SimpleNamespace(length=4))
    assert LoraRun._best_weights(run, 2) is not None
    assert LoraRun._best_weights(run, 4) is None
    run.layout.length = 8
    assert LoraRun._best_weights(run, 2) is None


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--rank", "0"], "a rank of 0 is not possible"),
        (["--rank", "4097"], "a rank of 4097 is not possible"),
        (["--rank", "200"], "a rank of 200 is larger than"),
        (["--alpha", "nan"], "an alpha of nan is not possible"),
        (["--targets", "q,w_proj"], "no target named 'w_proj'"),
        (["--targets", ","], "no targets are named"),
        (["--context", "50"], "a multiple of 16"),
        (["--steps", "3", "--minutes", "1"], "are both given"),
        (["--memory", "2M"], "fine-tuning takes at least"),
        (["--resume"], "there is no run to resume"),
    ],
)
def test_an_impossible_run_is_refused_and_leaves_nothing(
    run: Run, pack: Path, data: Path, tmp_path: Path, more: list[str], told: str
) -> None:
    ran = run("finetune", pack, "--data", data, "--out", tmp_path / "mine", *more)
    assert ran.code in (1, 2)
    assert told in ran.err
    assert ran.err.count("error:") == 1
    assert not list(tmp_path.glob("mine*"))


def test_data_that_is_no_data_is_refused(run: Run, pack: Path, data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{"prompt":\n')
    ran = run("finetune", pack, "--data", broken, "--out", tmp_path / "mine")
    assert (ran.code, "2" in ran.err) == (1, True)
    plain = shelf_models.packed_tiny(tmp_path)  # it has no chat template
    ran = run("finetune", plain, "--data", data, "--out", tmp_path / "mine")
    assert (ran.code, "template" in ran.err) == (1, True)
    (tmp_path / "mine").mkdir()
    ran = run("finetune", pack, "--data", data, "--out", tmp_path / "mine")
    assert (ran.code, "exists" in ran.err) == (1, True)
    assert not (tmp_path / "mine.run").exists()
