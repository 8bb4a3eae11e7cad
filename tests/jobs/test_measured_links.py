"""What sessions measured of links, and what of it outlasts them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

import pytest

from picoedge.errors import BoardLostError
from picoedge.jobs import measured_links
from picoedge.jobs.measured_links import LINKS_FILE, MeasuredLinks, measured_now
from picoedge.mesh.transport.client import Client
from picoedge.mesh.transport.messages import PING_BYTES
from picoedge.planner.topology import LinkFacts

QUICK, STOPPED = [0.0021, 0.0020, 0.0024, 0.0022], [0.080, 0.081, 0.079, 0.090]


class Pinged:
    """A daemon that answers after so many seconds of a clock that only it moves."""

    def __init__(self, clock: list[float], small_s: float, large_s: float, key: str = "k") -> None:
        self.clock, self.small_s, self.large_s = clock, small_s, large_s
        self.key, self.address = key, "10.0.0.2:7433"

    def ask_raw(self, kind: str, body: dict[str, Any], timeout_s: float) -> None:
        assert kind == "ping"
        self.clock[0] += self.large_s if body["bytes"] else self.small_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(measured_links.time, "perf_counter", lambda: now[0])
    return now


def session(folder: Path, clock: list[float], small_s: float, large_s: float) -> LinkFacts:
    """The link as a new session on that folder sees it, once it has measured these figures."""
    links = MeasuredLinks(folder)
    links.begin(cast(Client, Pinged(clock, 0.0001, 0.0)), 1.0)
    link = links.measure(cast(Client, Pinged(clock, small_s, large_s)), 1.0)
    links.save()
    return link


def test_a_link_is_what_it_adds_to_a_question_each_way(tmp_path: Path, clock: list[float]) -> None:
    link = session(tmp_path, clock, 0.0021, 0.0121)
    assert link.latency_s == pytest.approx(0.001)
    assert link.bytes_per_s == pytest.approx(PING_BYTES / 0.01)


def test_a_board_that_is_stopped_now_and_then_makes_no_link_longer() -> None:
    assert measured_now(QUICK + STOPPED, [0.0121]).small_s == pytest.approx(0.0021, rel=0.1)


def test_no_link_is_shorter_than_nothing(tmp_path: Path, clock: list[float]) -> None:
    link = session(tmp_path, clock, 0.00005, 0.00001)
    assert link.latency_s == 0
    assert link.bytes_per_s > 0


def test_a_noisy_moment_changes_no_link_and_a_slower_one_is_noticed(
    tmp_path: Path, clock: list[float]
) -> None:
    calm = session(tmp_path, clock, 0.0021, 0.0121)
    assert session(tmp_path, clock, 0.08, 0.3).latency_s == pytest.approx(calm.latency_s)
    link = session(tmp_path, clock, 0.08, 0.0121)
    assert link.latency_s == pytest.approx(calm.latency_s)
    assert session(tmp_path, clock, 0.04, 0.2).latency_s == pytest.approx(0.02, rel=0.01)


def test_the_other_address_of_a_board_is_another_link(tmp_path: Path, clock: list[float]) -> None:
    calm = session(tmp_path, clock, 0.0021, 0.0121)
    links, other = MeasuredLinks(tmp_path), Pinged(clock, 0.02, 0.12)
    other.address = "10.9.0.2:7433"
    links.begin(cast(Client, Pinged(clock, 0.0001, 0.0)), 1.0)
    assert links.measure(cast(Client, other), 1.0).latency_s > 5 * calm.latency_s


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"k 10.0.0.2:7433": 3}',
        b'{"k 10.0.0.2:7433": [{"at_s": 1, "small_s": -1, "large_s": 0}]}',
        b'{"k 10.0.0.2:7433": [{"at_s": "now"}]}',
    ],
)
def test_a_damaged_file_costs_its_figures(
    tmp_path: Path, clock: list[float], content: bytes
) -> None:
    (tmp_path / LINKS_FILE).write_bytes(content)
    assert session(tmp_path, clock, 0.0021, 0.0121).latency_s == pytest.approx(0.001)
    assert "k 10.0.0.2:7433" in json.loads((tmp_path / LINKS_FILE).read_bytes())


def test_figures_of_a_later_time_are_of_a_wrong_clock(tmp_path: Path, clock: list[float]) -> None:
    trips = {"at_s": time.time() + 1e6, "small_s": 1e-9, "large_s": 2e-9}
    (tmp_path / LINKS_FILE).write_text(json.dumps({"k 10.0.0.2:7433": [trips]}))
    assert session(tmp_path, clock, 0.0021, 0.0121).latency_s == pytest.approx(0.001)


def test_a_board_that_is_lost_has_no_figures(tmp_path: Path, clock: list[float]) -> None:
    class Lost(Pinged):
        def ask_raw(self, kind: str, body: dict[str, Any], timeout_s: float) -> None:
            raise BoardLostError("gone", board="b", key="k")

    links = MeasuredLinks(tmp_path)
    with pytest.raises(BoardLostError):
        links.measure(cast(Client, Lost(clock, 0.1, 0.1)), 1.0)
