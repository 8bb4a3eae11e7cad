"""The daemon's log says what happens, counts what happens often, and never grows without end."""

from __future__ import annotations

import errno
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.mesh.node.journal import AT_ONCE, HOUR_S, MOST_CHARACTERS, MOST_KINDS, MOST_LINES
from picoedge.mesh.node.journal import Journal as _Journal


class Journal(_Journal):
    """A journal whose time a test sets."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now_s = 0.0
        super().__init__(self.lines.append, lambda: self.now_s)


def test_of_one_kind_a_few_lines_an_hour_and_then_their_number() -> None:
    journal = Journal()
    for number in range(217):
        journal.say(f"dropped b2: reason {number}", "dropped b2")
    assert journal.lines == [f"dropped b2: reason {n}" for n in range(AT_ONCE)]
    journal.now_s = HOUR_S
    journal.look()
    (line,) = journal.lines[AT_ONCE:]
    assert line == "… 214 more like this in the last hour: dropped b2: reason 216"


def test_it_is_never_silent_for_good() -> None:
    journal = Journal()
    for _ in range(100):
        journal.say("the card is full")
        journal.now_s += HOUR_S
    assert journal.lines == ["the card is full"] * 100


def test_the_same_line_is_written_once_an_hour() -> None:
    journal = Journal()
    assert [journal.say("b2 does not let this board in") for _ in range(5)] == [True, *[False] * 4]


def test_lines_that_differ_in_numbers_are_of_one_kind() -> None:
    journal = Journal()
    for number in range(10):
        journal.say(f"b2 at 10.0.0.{number}:7433 is silent")
    assert len(journal.lines) == AT_ONCE


def test_lines_about_one_board_hide_none_about_another() -> None:
    journal = Journal()
    for number in range(1000):
        journal.say(f"dropped eve: {number}", "dropped eve")
    assert journal.say("dropped bob: his first", "dropped bob")


def test_words_of_others_forge_no_line() -> None:
    journal = Journal()
    journal.say("dropped eve: \x1b[2J\nb1: ok" + "x" * 10_000)
    (line,) = journal.lines
    assert line.startswith("dropped eve: [2J b1: ok")
    assert len(line) <= MOST_CHARACTERS


@given(
    st.lists(st.tuples(st.text(max_size=5), st.text(max_size=3), st.floats(0, 5000)), max_size=99)
)
def test_every_line_is_written_or_counted(events: list[tuple[str, str, float]]) -> None:
    journal = Journal()
    for text, about, passed_s in events:
        journal.now_s += passed_s
        journal.say(f"a {text}", about)
    journal.now_s += 2 * HOUR_S
    journal.look()
    journal.look()
    counts = [int(line.split()[1]) for line in journal.lines if line.startswith("… ")]
    written = sum(not line.startswith("… ") for line in journal.lines)
    assert written + sum(counts) == len(events)
    assert not journal._kinds


def test_a_flood_of_kinds_is_bounded_in_memory_and_on_the_card() -> None:
    journal = Journal()
    for number in range(20_000):
        for text in "ab":
            journal.say(f"{text} {number}", f"kind {number}")
            journal.say(f"{text} {number}", f"kind {number}")
    assert len(journal._kinds) <= MOST_KINDS
    assert len(journal.lines) <= MOST_LINES
    journal.now_s = HOUR_S
    journal.look()
    assert any("other lines were left out in the last hour" in line for line in journal.lines)


class Full(Journal):
    """Its card is full while `why` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.why: Exception | None = None
        self._write = self._write_or_fail

    def _write_or_fail(self, line: str) -> None:
        if self.why is not None:
            raise self.why
        self.lines.append(line)


@pytest.mark.parametrize(
    "why",
    [
        OSError(errno.ENOSPC, "no space"),
        BrokenPipeError(),
        OSError(errno.EIO, "broken"),
        ValueError("I/O operation on closed file"),
    ],
)
def test_a_line_that_cannot_be_written_is_counted(why: Exception) -> None:
    journal = Full()
    journal.say("before")
    journal.why = why
    assert not journal.say("lost 1", "lost")
    assert not journal.say("lost 2", "lost")
    journal.now_s += HOUR_S
    journal.look()  # nor can what it would say of them
    journal.why = None
    journal.now_s += HOUR_S
    journal.look()
    assert journal.lines[0] == "before"
    assert any("other lines were left out" in line for line in journal.lines[1:])


def test_a_fault_whose_traceback_cannot_be_written_is_no_other_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "no space")

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "no space")

    journal = Journal()
    monkeypatch.setattr(sys, "stderr", Broken())
    try:
        raise KeyError("a fault of ours")
    except KeyError as error:
        journal.fault_of(error)
    assert journal.lines == ["a fault in this service: KeyError: 'a fault of ours'"]
