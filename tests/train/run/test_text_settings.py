"""Settings: defaults, the file that repeats a run, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from picoedge.errors import UsageError
from picoedge.train.presets import PRESETS, preset
from picoedge.train.run.text_settings import (
    DEFAULTS,
    TrainSettings,
    check_settings,
    default_steps,
    micro_batch_sizes,
    read_settings,
)
from picoedge.train.state.layout import Layout


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_has_defaults_that_go_together(name: str) -> None:
    usual = DEFAULTS[name]
    settings = replace(TrainSettings(preset=name), micro_batch=usual.micro_batch).with_sizes()
    check_settings(settings.with_steps(1000, 0.5))
    assert settings.micro_batches >= 4  # a thread for each core of a Pi
    assert micro_batch_sizes(usual.batch, usual.micro_batch)[0] == usual.micro_batch
    parameters = Layout.of(preset(name)).parameters
    assert parameters == pytest.approx(float(name.removesuffix("m")) * 1e6, rel=0.1)


def test_a_config_file_gives_the_settings_again(tmp_path: Path) -> None:
    chosen = TrainSettings(
        text=('/home/ä "b"/x.txt', "/y\\z"), preset="1m", seed=7, learning_rate=1e-05, fast=True,
        micro_batch=2, data="ab12",
    ).with_sizes().with_steps(50, 0.1)  # fmt: skip
    path = tmp_path / "config.toml"
    path.write_text(chosen.to_toml(), encoding="utf-8")
    assert read_settings(path) == chosen


def test_defaults_follow_from_the_number_of_steps() -> None:
    settings = TrainSettings().with_sizes().with_steps(1000, 2.0)
    assert (settings.evaluate_every, settings.save_every, settings.warmup) == (50, 150, 50)
    assert TrainSettings().with_steps(4, 0.0).warmup == 1
    assert TrainSettings(warmup=0, save_every=9).with_steps(1000, 1.0).warmup == 0


def test_defaults_that_followed_from_other_steps_are_chosen_anew() -> None:
    known = TrainSettings().with_sizes().with_steps(2000, 2.0)
    assert (known.warmup, known.evaluate_every, known.save_every) == (100, 100, 150)
    again = replace(known.without_steps(), steps=100).with_steps(100, 2.0)
    assert (again.warmup, again.evaluate_every, again.save_every) == (10, 5, 100)
    chosen = replace(known, warmup=7, evaluate_every=9).without_steps().with_steps(100, 2.0)
    assert (chosen.warmup, chosen.evaluate_every) == (7, 9)


def test_steps_that_were_not_chosen() -> None:
    assert default_steps(1_000_000, 4096, 100_000_000) == (4883, "20 tokens a parameter")
    assert default_steps(1_000_000, 4096, 100_000) == (977, "40 passes over the text")
    assert default_steps(1_000_000, 4096, 1_000)[0] == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 5", r"no setting named 'stepz' \(did you mean: steps"),
        ("steps = 'five'", "steps is not an integer from 0 to 10000000"),
        ("steps = -1", "steps is not an integer"),
        ("learning_rate = nan", "learning_rate is not a number from 0 to 1"),
        ("fast = 1", "fast is not true or false"),
        ("preset = '2m'", "preset is not one of '1m', '5m', '15m', '40m'"),
        ("text = 'a.txt'", "text is not a list"),
        ("steps = ", r"config\.toml: Invalid value"),
        ("\xff", r"config\.toml: not utf-8 text"),
        ("#" * (1 << 20) + "\n", "too large"),
    ],
)
def test_a_wrong_config_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message):
        read_settings(path)


def test_a_config_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_settings(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 100}, "sequences of 100 tokens are not possible"),
        ({"batch": 6, "micro_batch": 4}, "cannot be cut into micro-batches of 4"),
        ({"batch": 128, "micro_batch": 1}, "at most 64 equal ones"),
        ({"steps": 5, "warmup": 6}, "a warm-up of 6 steps is longer"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_settings(replace(TrainSettings(), **changes).with_sizes())  # type: ignore[arg-type]
