"""Verdicts on a life: refusals, strength, growth, leftovers."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cluster_figures import LAN, board, load_of

from bench.life.faults.reach import Reach
from bench.life.figures import Lived, rows
from bench.life.verdict.holding import Holding, among
from bench.life.verdict.judge import MOST_REFUSED, REFUSED, WHOLE, Asked, answered_part, judge
from bench.life.verdict.neighbours import Neighbours
from bench.life.verdict.remains import (
    SEGMENTS,
    Spaces,
    files_left,
    is_held,
    segments,
    segments_left,
)
from bench.life.verdict.strength import Strength
from bench.life.verdict.watch import Grown, Living, growth_bytes, growths, why_too_few
from bench.power.cuts import left_on_shelf
from picoedge.planner.topology import Topology
from picoedge.store.pack.atomic_folder import new_folder, scratch_folder

CLEAR = "error: the boards cannot hold the model (add boards)"
GOOD = Asked(0.0, "", "calm", WHOLE, True, 3, 1.0, 2.0)
EXCUSED = dataclasses.replace(GOOD, outcome=REFUSED, held=False)


@pytest.fixture
def holding() -> Holding:
    """A model that two boards hold and one does not; only the first's links were measured."""
    load = load_of(n_ctx=8192)
    boards = tuple(board(name, memory=200) for name in "abc")
    return Holding(load, Topology(boards, {(0, 1): LAN, (0, 2): LAN}))


@pytest.mark.parametrize("hub", range(3))
def test_a_plan_says_whether_boards_hold_the_model(holding: Holding, hub: int) -> None:
    assert not holding.is_held_by({hub}, hub)
    for other in {0, 1, 2} - {hub}:
        assert holding.is_held_by({hub, other}, hub)
    assert holding.is_held_by({0, 1, 2}, hub)


def test_boards_that_cannot_be_reached_are_not_planned_with(holding: Holding) -> None:
    kept = among(holding.cluster, {1, 2}, 2)
    assert [each.name for each in kept.boards] == ["b", "c"]
    assert kept.hub == 1
    assert kept.link_between(0, 1) == LAN


def test_a_cut_reaches_as_far_as_the_network_does() -> None:
    reach = Reach(3)
    reach.part(0, 1)
    assert [sorted(reach.of(board)) for board in range(3)] == [[0, 2], [1, 2], [0, 1, 2]]
    reach.join(1, 0)
    reach.cut(2)
    reach.turn_off(1)
    assert reach.of(0) == {0}
    reach.heal(2)
    reach.turn_on(1)
    assert reach.of(0) == {0, 1, 2}


@pytest.mark.parametrize(
    ("error", "is_complete", "outcome"),
    [
        (CLEAR, True, REFUSED),
        (CLEAR, False, "failed"),
        ("error: no", True, "failed"),  # without a remedy
    ],
)
def test_a_refusal_is_clear(error: str, is_complete: bool, outcome: str) -> None:
    assert judge("", "a b", error, is_complete, is_cut=False) == (outcome, True)


def test_a_refusal_counts_where_no_plan_holds_the_model() -> None:
    assert answered_part([GOOD] * 99 + [EXCUSED]) == 1.0
    assert answered_part([GOOD] * 99 + [dataclasses.replace(EXCUSED, held=True)]) == 0.99


def test_more_refusals_than_a_few_are_failures() -> None:
    assert MOST_REFUSED == 0.05
    assert answered_part([GOOD] * 90 + [EXCUSED] * 10) == 0.95


def test_strength_is_counted_from_when_all_is_well() -> None:
    strength = Strength()
    strength.well(10.0)
    strength.answered(9.0, 12.0, by_all=True)  # asked before
    assert strength.took_s is None
    strength.answered(12.0, 14.0, by_all=False)
    strength.answered(14.0, 20.0, by_all=True)
    strength.answered(20.0, 30.0, by_all=True)
    assert strength.took_s == 10.0
    strength.well(40.0)
    assert strength.took_s is None


def test_a_question_is_calm_while_no_other_life_asks() -> None:
    neighbours = Neighbours()
    with neighbours.busy(1) as is_alone:
        with neighbours.busy(1):
            assert is_alone()
        with neighbours.busy(2) as other_is_alone:
            assert not is_alone()
            assert not other_is_alone()
        assert not is_alone()  # it was disturbed
    with neighbours.busy(1) as is_alone:
        assert is_alone()


def test_a_calm_question_waits_for_other_lives() -> None:
    neighbours, asked = Neighbours(), threading.Event()

    def ask() -> None:
        neighbours.await_quiet(1, 30.0)
        asked.set()

    with neighbours.busy(2):
        neighbours.await_quiet(2, 30.0)  # its own does not count
        neighbours.await_quiet(1, 0.01)  # no longer than it was told
        waiting = threading.Thread(target=ask)
        waiting.start()
        assert not asked.wait(0.05)
    waiting.join()
    assert asked.is_set()


def test_growth_is_from_the_tenth_minute_to_the_last() -> None:
    steady = [(30.0 * i, 100) for i in range(50)]
    assert growth_bytes(steady[:30]) is None  # too young
    assert growth_bytes(steady) == 0
    assert growth_bytes([(at, int(at)) for at, _ in steady]) == 1440 - 630
    assert growth_bytes([(at, 900 if at < 600 else 100) for at, _ in steady]) == 0


def test_processes_that_are_old_enough_are_judged() -> None:
    old = Living("b1", "hub", 0.0, [(30.0 * i, 100) for i in range(50)])
    young = Living("b1", "worker", 0.0, old.memory[:30])
    assert [one.role for one in growths([old, young])] == ["hub"]


def grown(role: str, is_alive: bool = True) -> Grown:
    return Grown(role, "b1", 1500.0, 0, is_alive)


@pytest.mark.parametrize(
    ("lives", "why"),
    [
        ({1: [grown("hub"), grown("daemon"), *[grown("worker", False)] * 3]}, ""),
        ({1: [grown("hub"), grown("daemon")], 2: [grown("hub")] * 4}, "seed 2 no daemon"),
        ({1: [grown("hub", False), *[grown("daemon")] * 4]}, "seed 1 no hub"),
        ({1: [grown("hub"), grown("daemon")], 2: [grown("hub"), grown("daemon")]}, "4 processes"),
        ({1: []}, "no daemon and no hub"),
    ],
)
def test_a_life_too_short_for_growth_is_no_measurement(
    lives: dict[int, list[Grown]], why: str
) -> None:
    assert (why in why_too_few(lives)) if why else (why_too_few(lives) == "")


def figures(*asked: Asked, broken: str = "") -> dict[str, tuple[float, str]]:
    strengths = [("kill hub b1", 12.0)] if asked else []
    lived = Lived(7, asked, strengths, leaks=["b1: process 9"], broken=broken)
    return {one.name: (one.value, one.note) for one in rows([lived])}


def test_each_row_says_what_stands_out() -> None:
    bad = dataclasses.replace(GOOD, event="move b3", outcome="failed", error="error: gone")
    calm = dataclasses.replace(GOOD, calm=True, event="idle")
    found = figures(GOOD, bad, calm)
    assert found["weeks_answers"][0] == pytest.approx(2 / 3)
    assert "move b3, calm: failed error: gone" in found["weeks_answers"][1]
    assert found["weeks_full_strength_s"] == (12.0, "12 s after kill hub b1, seed 7")
    assert "idle" in found["weeks_first_token_ratio"][1]
    assert found["weeks_leaks"] == (1, "seed 7: b1: process 9")
    assert found["weeks_growth_mb"][0] != found["weeks_growth_mb"][0]  # not a number
    assert "no daemon and no hub" in found["weeks_growth_mb"][1]


def test_a_life_that_broke_off_has_no_part_of_answers() -> None:
    value, note = figures(GOOD, broken="OSError()")["weeks_answers"]
    assert value != value
    assert "seed 7 broke off: OSError()" in note
    assert figures()["weeks_full_strength_s"][1] == "nothing has happened"


@pytest.mark.parametrize(
    ("kind", "state", "held"),
    [("tcp", "0A", True), ("tcp6", "01", True), ("tcp", "06", False), ("udp", "07", True)],
)
def test_sockets_that_end_by_themselves_are_the_kernels(kind: str, state: str, held: bool) -> None:
    assert is_held(kind, ["0:", "0100007F:1F90", "00000000:0000", state]) == held


def test_what_a_writer_leaves_when_it_is_killed_is_found(tmp_path: Path) -> None:
    shelf = tmp_path / "models"
    with suppress(KeyboardInterrupt), new_folder(shelf / "tiny.pico", 0):
        (partial,) = (path.name for path in shelf.iterdir())
        with scratch_folder(shelf) as scratch:
            found = {f"models/{partial}", f"models/{scratch.name}"}
            assert set(files_left(tmp_path)) == found
            assert left_on_shelf(shelf) == sorted([partial, scratch.name])
        raise KeyboardInterrupt
    assert files_left(tmp_path) == []
    (shelf / "tiny.pico.old-0a1b2c3d").mkdir()
    (shelf / "roster.json.new").touch()
    (shelf / "tiny.pico").mkdir()  # is no leftover
    assert files_left(tmp_path) == ["models/roster.json.new", "models/tiny.pico.old-0a1b2c3d"]
    assert left_on_shelf(shelf) == ["tiny.pico.old-0a1b2c3d"]


@pytest.mark.parametrize("kind", ["picoedge-test", "psm_"])
def test_a_segment_that_nobody_has_is_left_behind(kind: str) -> None:
    before, name = segments(), f"{kind}{os.getpid()}"
    path = SEGMENTS / name
    path.write_bytes(b"x")
    try:
        assert f"segment {name}" in segments_left(before)
        assert segments_left(segments()) == []
    finally:
        path.unlink()


@pytest.fixture
def space() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a network namespace of its own."""
    words = ["unshare", "--net", "sh", "-c", "echo && read _"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            pytest.skip("no network namespaces here")
        yield process


def test_a_namespace_that_a_process_is_in_is_left_behind(space: subprocess.Popen[bytes]) -> None:
    number = os.stat(f"/proc/{space.pid}/ns/net").st_ino
    assert Spaces(frozenset((number,))).left()
    held = os.open(f"/proc/{space.pid}/ns/net", os.O_RDONLY)
    assert space.stdin is not None
    space.stdin.close()
    space.wait()
    assert f"namespace {number}, of " in Spaces(frozenset((number,))).left()[0]
    os.close(held)
    assert Spaces(frozenset((number,))).left() == []
