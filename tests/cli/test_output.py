"""The line of progress leaves a clean line behind, also where it is drawn in an answer."""

from __future__ import annotations

import io
import sys

import pytest

from picoedge.cli.output import ProgressLine, showing_progress


class Terminal(io.StringIO):
    """The screen of a terminal after some output."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        return [line.rpartition("\r\x1b[K")[2] for line in self.getvalue().split("\n")]


def test_an_answer_after_a_line_of_progress_starts_on_a_clean_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with showing_progress() as progress:
        assert progress is not None
        progress("loading", 10, 100)
        progress("loading", 100, 100)
    terminal.write("The fruit")
    assert terminal.lines == ["The fruit"]


def test_a_load_in_an_answer_leaves_the_words_before_it_and_a_clean_line() -> None:
    terminal, now_s = Terminal(), [100.0]
    line = ProgressLine(terminal, lambda: now_s[0])
    line.is_in_answer = True
    terminal.write("The fru")
    line.draw("", 0, 0)
    terminal.write("b3 is lost; going on\n")
    for stage in ("pulling", "loading"):
        line.draw(stage, 1, 100)
        now_s[0] += 1.0
        line.draw(stage, 100, 100)
    terminal.write("it is")
    assert terminal.lines == ["The fru", "b3 is lost; going on", "it is"]


def test_a_load_that_is_interrupted_is_erased_before_the_reason() -> None:
    terminal = Terminal()
    line = ProgressLine(terminal, lambda: 0.0)
    line.draw("b2: pulling", 67, 100)
    line.draw("", 0, 0)
    terminal.write("b3 is lost")
    assert terminal.lines == ["b3 is lost"]


def test_words_of_others_in_a_stage_move_no_cursor() -> None:
    terminal = Terminal()
    ProgressLine(terminal).draw("b2\x1b[2J: pulling\n", 1, 2)
    assert terminal.getvalue() == "\r\x1b[Kb2[2J: pulling   50%  1 B of 2 B"


def test_without_a_terminal_there_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with showing_progress() as progress:
        assert progress is None
