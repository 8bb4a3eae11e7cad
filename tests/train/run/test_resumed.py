"""A run that goes on: with the memory it was begun with, and with time that is told."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from trained_packs import trained_pack
from training_text import english

from picoedge.store.pack.reader import Pack
from picoedge.train.lora import run as lora_run
from picoedge.train.lora.run import LoraOptions, begin_lora, resume_lora
from picoedge.train.lora.settings import LoraSettings
from picoedge.train.run import assembly, text_run
from picoedge.train.run.assembly import Arithmetic, Run
from picoedge.train.run.folder import RunFolder
from picoedge.train.run.text_run import TextOptions, begin_run, resume_run
from picoedge.train.run.text_settings import TrainSettings
from picoedge.train.state.checkpoints import Checkpoints

BASE = 60 << 20


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each checkpoint that was read; they are part of what the process takes."""
    read: list[int] = []
    newest = Checkpoints.newest

    def counted(checkpoints: Checkpoints) -> Any:
        found = newest(checkpoints)
        if found is not None:
            read.append(sum(array.nbytes for array in found[1].arrays.values()))
        return found

    monkeypatch.setattr(Checkpoints, "newest", counted)
    for module in (text_run, lora_run):
        monkeypatch.setattr(module, "rss_bytes", lambda: BASE + sum(read))
    return read


def stopped_after_one_step(run: Run) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 1

    assert run.train(lambda trainer: (), stop).step == 1


def test_a_text_s_run_goes_on_with_its_first_budget(tmp_path: Path, loaded: list[int]) -> None:
    (tmp_path / "a.txt").write_text(english(3000))
    settings = TrainSettings(
        text=(str(tmp_path / "a.txt"),), preset="1m", steps=3, batch=2, length=64
    )
    with closing(RunFolder(tmp_path / "a.run")) as folder:
        run = begin_run(TextOptions(tmp_path / "a.pico", 1), settings, folder, None)
        with closing(run.source):
            stopped_after_one_step(run)
        options = TextOptions(tmp_path / "a.pico", 1, run.fit.nbytes)
        again = resume_run(options, settings, (), folder, None)
        with closing(again.source):
            assert (again.fit, again.done, len(loaded)) == (run.fit, 1, 1)
            assert again.step_s > 0


def test_an_adapter_s_run_goes_on_with_its_first_budget(tmp_path: Path, loaded: list[int]) -> None:
    pack: Pack = trained_pack(tmp_path / "model")
    data = tmp_path / "a.jsonl"
    data.write_text('{"prompt": "cat?", "completion": "Pimpernel."}\n' * 3)
    settings = LoraSettings(data=(str(data),), steps=3, length=64)
    with closing(RunFolder(tmp_path / "a.run")) as folder:
        run = begin_lora(LoraOptions(tmp_path / "a", 1), settings, pack, folder, None)
        stopped_after_one_step(run)
        options = LoraOptions(tmp_path / "a", 1, run.fit.nbytes)
        again = resume_lora(options, settings, (), pack, folder, None)
        assert (again.fit, again.done, len(loaded)) == (run.fit, 1, 1)


def test_blas_is_held_to_one_thread_wherever_it_multiplies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(assembly, "hold_blas_to_one_thread", lambda: bool(asked.append("held")))
    assert Arithmetic.choose(None, fast=False).is_blas_held
    assert asked == []
    assert not Arithmetic.choose("numpy", fast=False).is_blas_held
    assert not Arithmetic.choose(None, fast=True).is_blas_held
    assert len(asked) == 2
