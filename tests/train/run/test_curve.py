"""Curves: in the terminal, and as pictures."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from picoedge.errors import UsageError
from picoedge.train.run.curve import curves_of, draw_curve
from picoedge.train.run.plot import check_plot, save_plot

TRAINING = [(step, 8.0 / (1 + step / 10)) for step in range(1, 101)]
HELD_OUT = [(0, 8.0), (50, 2.0), (100, 1.0)]


def test_a_curve_is_drawn_as_text() -> None:
    lines = draw_curve(TRAINING, HELD_OUT, width=20, height=5)
    assert lines[0].lstrip("0123456789. ").startswith("|*")
    assert lines[4].endswith("o")
    assert sum(line.count("o") for line in lines[:5]) == 2
    assert max(map(len, lines)) <= 50


def test_few_or_equal_losses_draw_too() -> None:
    assert draw_curve([], []) == draw_curve([(1, 5.0)], []) == []
    assert len(draw_curve([(1, 5.0), (2, 5.0)], [], height=4)) == 7
    assert "held out" not in draw_curve([(1, 5.0), (2, 5.0)], [])[-1]


def test_a_log_gives_each_step_once_and_in_order() -> None:
    lines = [
        {"step": 1, "loss": 3}, {"step": 2, "loss": 2.5}, {"step": 2, "held_out": 2.4},
        {"step": 2, "loss": 2.0}, {"step": 2, "sample": "x"},
    ]  # fmt: skip
    assert curves_of(lines) == ([(1, 3.0), (2, 2.0)], [(2, 2.4)])


def test_a_png_and_an_svg_are_written_and_the_same_each_time(tmp_path: Path) -> None:
    png, svg = tmp_path / "c.png", tmp_path / "c.svg"
    for path in (png, svg):
        check_plot(path)
        save_plot(path, TRAINING, HELD_OUT, "tales.pico")
    assert png.read_bytes().startswith(b"\x89PNG")
    first = svg.read_bytes()
    assert ET.fromstring(first).tag.endswith("svg")
    save_plot(svg, TRAINING, HELD_OUT, "tales.pico")
    assert svg.read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.png", "c.svg"]


def test_a_plot_that_cannot_be_made_is_refused_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"end in \.png or \.svg"):
        check_plot(tmp_path / "c.pdf")
    with pytest.raises(UsageError, match="there is no folder"):
        check_plot(tmp_path / "no" / "c.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'picoedge\[plot\]'"):
        check_plot(tmp_path / "c.png")
