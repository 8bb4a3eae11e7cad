"""Reports of daemons that say what a test has them say, and what is made of a lost board."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from picoedge.cluster import daemon_reports
from picoedge.cluster.daemon_reports import DaemonReports
from picoedge.errors import (
    AccessError,
    BoardLostError,
    BoardRefusedError,
    BoardSilentError,
    MeshError,
    ProtocolError,
    UnlinkedError,
)

SAID = {"message": "its worker was killed (signal 9)", "hint": ""}


Pushed = tuple[str, dict[str, Any]]


def board(name: str, *pushed: Pushed) -> Any:
    """A board whose daemon has pushed this."""
    inbox = [list(pushed)]
    client = SimpleNamespace(
        notifications=lambda: inbox.pop() if inbox else [], ask_raw=lambda *its: []
    )
    return SimpleNamespace(name=name, key=f"key of {name}", client=client)


def reports_of(
    *pushed: Pushed, others: Sequence[Any] = (), exchanges: bool = True
) -> tuple[DaemonReports, Any]:
    """Reports of a hub, of b2, whose daemon has pushed this, and of others."""
    b2 = board("b2", *pushed)
    handles = [board("hub"), b2, *others]
    return DaemonReports(handles, unlink, None, exchanges=exchanges), b2


UNLINKED: list[Any] = []


def unlink(*pair: Any) -> None:
    UNLINKED.append(pair)


def lost(name: str, why: str = "its connection ended") -> BoardLostError:
    return BoardLostError(f"{name}: {why}", board=name, key=f"key of {name}")


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_reports, "LAST_WORDS_S", 0.01)
    UNLINKED.clear()


def test_a_reason_that_is_known_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reports, b2 = reports_of(
        ("job-report", {"stage": "computing", "state": "runs"}), ("job-ended", SAID)
    )
    with pytest.raises(BoardLostError, match="killed") as raised:
        reports.read(b2)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    explained = reports.explain(raised.value)
    assert explained.board == "b2"
    assert "killed (signal 9); 0.0 s ago it reported: computing, runs" in explained.message


def test_a_reason_that_was_read_before_another_error_is_told() -> None:
    reports, b2 = reports_of(("job-ended", SAID))
    with pytest.raises(BoardLostError, match="killed"):
        reports.read(b2)
    explained = reports.explain(lost("b2"))
    assert explained.message == "b2: its worker was killed (signal 9)"


def test_a_reason_that_comes_later_replaces_the_error() -> None:
    reports, _ = reports_of(("job-ended", SAID))
    explained = reports.explain(lost("b2"))
    assert explained.message == "b2: its worker was killed (signal 9)"


def test_a_board_that_another_one_has_lost_says_why_itself() -> None:
    said = {"message": "b2 is lost: its connection ended", "hint": "", "board": "b2"}
    b3 = board("b3", ("job-report", {"stage": "computing"}), ("job-ended", said))
    reports, _ = reports_of(("job-ended", SAID), others=[b3])
    explained = reports.explain(lost("b3"))
    assert (explained.board, explained.message) == ("b2", "b2: its worker was killed (signal 9)")


ACCUSES = {"message": "b2 is lost: \x1b[2J\nerror: forged", "hint": "", "key": "key of b2"}


@pytest.mark.parametrize("report", [{"state": "running"}, {"state": "disk"}, None])
def test_a_board_that_another_one_falsely_accuses_is_well(report: Any) -> None:
    """The accusation costs the link of the pair, and the accuser its place until it is tried."""
    b3 = board("b3", ("job-ended", ACCUSES))
    reports, _ = reports_of(*([("job-report", report)] if report else ()), others=[b3])
    explained = reports.explain(lost("b3"))
    assert (explained.board, explained.key) == ("b3", "key of b3")
    assert explained.message == "b3: b2 is lost: [2J error: forged"
    assert UNLINKED == [("key of b3", ["key of b2"])]


@pytest.mark.parametrize("state", ["stopped", "ended"])
def test_a_board_is_lost_whose_own_daemon_says_so_after_an_accusation(state: str) -> None:
    b3 = board("b3", ("job-ended", ACCUSES))
    reports, _ = reports_of(("job-report", {"state": state}), others=[b3])
    assert reports.explain(lost("b3")).board == "b2"
    assert not UNLINKED


def test_a_board_is_lost_whose_daemon_is_silent_after_an_accusation() -> None:
    def silent(*its: Any) -> None:
        raise lost("b2", "it took the question and is silent")

    reports, b2 = reports_of(others=[board("b3", ("job-ended", ACCUSES))])
    b2.client.ask_raw = silent
    assert reports.explain(lost("b3")).message == "b2: it took the question and is silent"


@pytest.mark.parametrize("accused", ["b2", "b3", "hub", "stranger"])
def test_only_a_worker_that_it_has_a_link_to_can_be_accused(accused: str) -> None:
    said = {"message": "lost", "hint": "", "board": accused}
    b3 = board("b3", ("job-ended", said))
    reports, _ = reports_of(others=[b3], exchanges=accused != "b2")
    assert reports.explain(lost("b3")).board == "b3"
    assert not UNLINKED


def test_an_error_without_a_reason_stays_as_it_is() -> None:
    reports, _ = reports_of()
    error = lost("b2")
    assert reports.explain(error).message == error.message


def test_a_worker_that_cannot_reach_another_blames_nobody() -> None:
    said = {**SAID, "failed": True, "unreached": ["key of b3", "key of a stranger"]}
    reports, b2 = reports_of(("job-ended", said), others=[board("b3")])
    with pytest.raises(UnlinkedError) as raised:
        reports.read(b2)
    assert raised.value.keys == ("key of b2", "key of b3")


def test_where_workers_need_not_reach_each_other_that_is_no_excuse() -> None:
    said = {**SAID, "unreached": ["key of b3"]}
    reports, b2 = reports_of(("job-ended", said), others=[board("b3")], exchanges=False)
    with pytest.raises(BoardLostError, match="b2"):
        reports.read(b2)


def test_a_board_of_which_nothing_is_heard_is_told_from_one_whose_worker_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(daemon_reports, "LAST_WORDS_S", 0.0)
    lost = BoardLostError("b2 is lost: silent", board="b2", key="key of b2")
    silent, _ = reports_of(("job-report", {"stage": "computing", "state": "stopped"}))
    assert isinstance(silent.explain(lost), BoardSilentError)
    ended, b2 = reports_of(("job-ended", SAID))
    with pytest.raises(BoardLostError, match="killed"):
        ended.read(b2)
    assert type(ended.explain(lost)) is BoardLostError


@pytest.mark.parametrize("port", [0, 1 << 16, "4711", None, True])
def test_a_worker_that_listens_nowhere_blames_its_board(port: Any) -> None:
    reports, b2 = reports_of(("job-listens", {"port": port}))
    with pytest.raises(BoardRefusedError, match="port") as raised:
        reports.read(b2)
    assert raised.value.key == b2.key
    assert not reports.ports


@pytest.mark.parametrize(
    "error", [ProtocolError("a message that is not picoedge's"), AccessError("not let in")]
)
def test_a_daemon_that_sends_what_makes_no_sense_is_blamed(error: MeshError) -> None:
    def nonsense() -> None:
        raise error

    reports, b2 = reports_of()
    b2.client.notifications = nonsense
    with pytest.raises(BoardRefusedError, match=error.message) as raised:
        reports.check()
    assert raised.value.key == b2.key
    explained = reports.explain(raised.value)
    assert isinstance(explained, BoardRefusedError)
    assert explained.key == b2.key
