"""The bench of training: its rows, its turns, what both sides compute, and its text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import report, train, train_kills, train_text, train_turns
from bench.children import BenchError
from bench.train_shapes import SMALL, Course, config_named, random_weights, random_windows
from bench.train_turns import Side, Taken
from picoedge.train.state.layout import Layout

TAKEN = Taken(
    {
        "torch": [[(4.0, 3.0), (2.0, 2.0), (9.0, 2.5)], [(6.0, 3.0)]],
        "exact": [[(2.0, 1.0)], [(2.0, 2.0)]],
    },
    {"torch": 800.0, "exact": 400.0},
)


def test_every_row_has_a_target_and_one_measurement() -> None:
    names = [name for group, _ in train.GROUPS for name in group]
    assert sorted(names) == sorted(train.TARGETS)
    for target in train.TARGETS.values():
        report.meets(1.0, target.must)


def test_a_ratio_is_of_the_medians_of_one_round() -> None:
    assert TAKEN.ratios("exact", "torch") == (2.0, 3.0)
    assert TAKEN.ratios("exact", "torch", cpu=True) == (2.5, 1.5)
    row = train_turns.speed_row("exact_5m_1t", "exact", TAKEN, 1024, {})
    assert (row.value, row.runs) == (2.5, (2.0, 3.0))
    assert row.note == "512 tok/s, torch 205; by CPU time 2"


def test_memory_is_ours_by_theirs() -> None:
    row = train_turns.memory_row(TAKEN.peaks_mb)
    assert (row.name, row.value) == ("train_memory_15m", 0.5)


def test_sides_that_compute_different_models_are_told() -> None:
    train_turns.agree({"torch": [8.0, 7.0], "exact": [8.00001, 7.00001]})
    with pytest.raises(BenchError, match="not one model"):
        train_turns.agree({"torch": [8.0, 7.0], "exact": [8.0, 7.1]})
    with pytest.raises(BenchError, match="not one model"):
        train_turns.agree({"torch": [8.0], "exact": [float("nan")]})


def test_a_side_that_ends_says_why() -> None:
    side = Side("torch", "no_such_module", {})
    with pytest.raises(BenchError, match=r"(?s)torch ended.*no_such_module"), side:
        pass


def test_rows_have_the_names_of_their_targets() -> None:
    names = [train_turns.row_name("5m", 2, mode) for mode in ("exact", "fast", "numpy")]
    assert names == ["exact_5m_2t", "fast_5m_2t", "numpy_train_5m"]


def test_numpy_is_measured_as_the_product_runs_it() -> None:
    with train_turns.our_side("5m", 1, "numpy") as side:
        first = side.first_losses
    assert len(first) == 2
    assert side._request["micro_batches"] is None


def test_a_course_takes_each_window_once_in_an_epoch_and_none_that_is_held_out() -> None:
    course = Course("1m", seed=3, steps=5, rows=4, length=8, held_out=5)
    ids = np.arange(25 * 8 + 1, dtype=np.int32)
    firsts = [int(row[0]) for step in range(1, 6) for row in course.windows(ids, step)]
    assert sorted(firsts) == [8 * number for number in range(20)]
    held_out = course.held_out_windows(ids)
    assert [int(row[0]) for row in held_out] == [8 * number for number in range(20, 25)]
    assert held_out.shape == (5, 9)
    again = Course("1m", seed=3, steps=5, rows=4, length=8, held_out=5).windows(ids, 2)
    np.testing.assert_array_equal(course.windows(ids, 2), again)


def test_the_small_model_has_about_400_thousand_values_and_takes_bytes() -> None:
    layout = Layout.of(config_named(SMALL))
    assert 350_000 < layout.parameters < 450_000
    assert layout.config.vocab_size == 256


def test_weights_of_a_preset_have_the_names_of_its_layout() -> None:
    config = config_named("1m")
    assert random_weights(config).keys() == Layout.of(config).tensors.keys()
    windows = random_windows(config, 0, 1, 3, 16)
    assert windows.shape == (3, 17)
    assert (windows != random_windows(config, 0, 2, 3, 16)).any()


def test_the_text_is_of_modules_without_tests_in_the_order_of_names(tmp_path: Path) -> None:
    for name, text in (
        ("b.py", b"two"),
        ("a/c.py", b"one"),
        ("a/latin.py", b"\xe9"),
        ("a/test/d.py", b"no"),
        ("site-packages/e.py", b"no"),
        ("f.txt", b"no"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    assert train_text.library_text(tmp_path) == b"one\ntwo"
    assert train_text.byte_ids(b"abc", 2).tolist() == [97, 98]


def test_the_hash_of_a_pack_is_of_its_weights_alone(tmp_path: Path) -> None:
    packs = [tmp_path / name for name in ("a.pico", "b.pico")]
    for pack in packs:
        pack.mkdir()
        (pack / "head.safetensors").write_bytes(b"weights")
        (pack / "picoedge.json").write_text(pack.name)
    assert train_kills.weights_hash(packs[0]) == train_kills.weights_hash(packs[1])
    (packs[1] / "head.safetensors").write_bytes(b"others")
    assert train_kills.weights_hash(packs[0]) != train_kills.weights_hash(packs[1])
    (packs[1] / "head.safetensors").unlink()
    with pytest.raises(BenchError, match=r"b\.pico has no weights"):
        train_kills.weights_hash(packs[1])
