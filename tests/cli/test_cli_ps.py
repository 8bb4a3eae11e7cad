"""`picoedge ps` and `top`: the mesh as shown, and words of other boards in it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_boards import PICOEDGE, BoardOf, board_alone, until
from hypothesis import given
from hypothesis import strategies as st

from picoedge.cli import boards
from picoedge.cli.main import main
from picoedge.errors import ProtocolError
from picoedge.host.thermal import Heat, Thermometer, read_heat
from picoedge.jobs.progress_page import ProgressPage, Work, new_page
from picoedge.jobs.status import MeshState, read_mesh

MB = 1 << 20


def told(name: str, condition: str = "alive", **report: Any) -> dict[str, Any]:
    """A board as its daemon tells of it."""
    key, address = name[0] * 40, f"10.0.0.{len(name)}:7433"
    return {
        "name": name, "key": key, "addresses": [address], "condition": condition, "report": report,
    }  # fmt: skip


def mesh(*boards: dict[str, Any]) -> MeshState:
    return read_mesh({"cluster": "desk", "boards": list(boards)})


HUB = told("hub", does="hub", rss_bytes=26 * MB, memory_bytes=512 * MB, holder="hub")
WORKER = told(
    "shelf", does="computing", state="disk", model="llama", attention=[2, 4], ffn=[11, 22],
    head_shards=[40, 64],
    rss_bytes=210 * MB, memory_bytes=512 * MB, temperature_c=84.2, throttled=True, queue_length=1,
    work={"tokens": 100, "compute_s": 2.0, "sync_s": 0.5, "disk_s": 0.1}, holder="hub",
)  # fmt: skip
GONE = told("attic", "dead", does="free", rss_bytes=1, memory_bytes=2)


# -- reading ---------------------------------------------------------------------------------------


def test_rows() -> None:
    state = mesh(HUB, WORKER, GONE)
    assert boards.summary(state) == "cluster desk: 3 boards, 2 of them here"
    assert [boards.row(board) for board in state.boards] == [
        ("hub", "alive", "10.0.0.3:7433", "hub of a session", *("-",) * 4, "26 MB of 512 MB", "-"),
        ("attic", "dead", "10.0.0.5:7433", *("-",) * 7),
        ("shelf", "alive", "10.0.0.5:7433", "computing for hub (waits for its disk), 1 waiting",
         "llama", "heads 2-3", "shards 11-21", "shards 40-63", "210 MB of 512 MB",
         "84 °C, throttled"),
    ]  # fmt: skip
    told = json.loads(json.dumps(state.to_json()))["boards"][2]
    names = ("how", "holder", "attention", "ffn", "vocabulary", "waiting")
    assert [told[name] for name in names] == ["disk", "hub", [2, 4], [11, 22], [40, 64], 1]
    assert told.keys().isdisjoint({"state", "head_shards"})  # names of the wire


def test_a_board_s_users_of_memory_are_shown() -> None:
    uses = [
        {"use": "answer", "bytes": 180 * MB, "holder": "hub", "model": "llama", "age_s": 3},
        {"use": "answer", "bytes": 30 * MB, "holder": "this board alone", "model": "", "age_s": 9},
        {"use": "kept", "bytes": 20 * MB, "holder": "attic", "model": "tiny", "age_s": 60},
        {"use": "training", "bytes": 90 * MB, "holder": "hub", "model": "", "age_s": 60},
    ]
    state = mesh(told("shelf", rss_bytes=210 * MB, memory_bytes=512 * MB, uses=uses))
    shown = boards.memory(state.boards[0])
    assert shown == (
        "210 MB of 512 MB: 180 MB for hub, 30 MB for this board alone, 20 MB kept for attic, "
        "90 MB training for hub"
    )
    assert shown in boards.row(state.boards[0])


def test_a_slice_without_attention() -> None:
    state = mesh(told("a", does="computing", attention=[0, 0], ffn=[0, 3], head_shards=[64, 64]))
    assert boards.row(state.boards[0])[5:8] == ("-", "shards 0-2", "-")
    assert state.to_json()["boards"][0]["attention"] == [0, 0]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
FIELDS = [
    "does", "state", "holder", "model", "attention", "ffn", "head_shards", "rss_bytes",
    "memory_bytes", "temperature_c", "throttled", "queue_length", "work", "uses",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), values))
def test_hostile_reports_of_other_boards_are_harmless(report: dict[str, Any]) -> None:
    state = mesh(told("here", does="free"), told("there", **report))
    rates = boards.sampled(lambda: state, 2, 0.0, lambda delay_s: True)
    for sample, rate in rates:
        for board, its in zip(sample.boards, rate, strict=True):
            assert all(isinstance(cell, str) for cell in boards.top_row(board, its))
    json.dumps(state.to_json(), allow_nan=False)


@pytest.mark.parametrize("body", [{}, {"boards": 3}, {"boards": [3]}, {"boards": []}])
def test_an_answer_that_is_none(body: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read_mesh(body)


# -- how a token's time is spent -------------------------------------------------------------------


def test_rates_between_two_samples() -> None:
    later = {**WORKER["report"], "work": {"tokens": 120, "compute_s": 2.4, "sync_s": 0.7,
                                          "disk_s": 0.1}}  # fmt: skip
    states = iter([mesh(HUB, WORKER), mesh(HUB, {**WORKER, "report": later})])
    clock = iter([10.0, 11.0])
    first, second = boards.sampled(
        lambda: next(states), 2, 1.0, lambda delay_s: True, lambda: next(clock)
    )
    assert first[1] == [None, None]
    none, rates = second[1]
    assert none is None
    assert rates is not None
    assert rates.tok_s == pytest.approx(20)
    assert (rates.compute_s, rates.sync_s) == (pytest.approx(0.02), pytest.approx(0.01))
    assert (rates.disk_s, rates.idle_s) == (pytest.approx(0), pytest.approx(0.02))
    assert boards.top_row(second[0].boards[1], rates)[-5:] == (
        "20",
        "20 ms",
        "10 ms",
        "0 ms",
        "20 ms",
    )


@pytest.mark.parametrize("tokens", [99, 100])
def test_no_rates_of_another_session_or_of_none(tokens: int) -> None:
    later = {**WORKER["report"], "work": {"tokens": tokens, "compute_s": 0.1, "sync_s": 0.0,
                                          "disk_s": 0.0}}  # fmt: skip
    states = iter([mesh(WORKER), mesh({**WORKER, "report": later})])
    *_, (_, rates) = boards.sampled(lambda: next(states), 2, 1.0, lambda delay_s: True)
    assert rates == [None]


def test_sampling_ends_when_its_wait_is_cut_short() -> None:
    assert len(list(boards.sampled(lambda: mesh(HUB), None, 1.0, lambda delay_s: False))) == 1


def test_the_page_has_what_was_done() -> None:
    with new_page() as path:
        page = ProgressPage(path)
        assert page.read().work == Work()
        page.write_work(Work(7, 1.5, 0.25, 0.125))
        page.write("computing", 1, 7)
        assert page.read().work == Work(7, 1.5, 0.25, 0.125)
        assert (page.read().stage, page.read().passes) == ("computing", 7)
        page.close()


# -- heat ------------------------------------------------------------------------------------------


def sensor(sys: Path, name: str, text: str) -> None:
    path = sys / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_hottest_sensor_that_is_real(tmp_path: Path) -> None:
    assert read_heat(tmp_path) == Heat(None, False)
    for i, text in enumerate(["61234\n", "48000", "-273000", "nonsense", "999000"]):
        sensor(tmp_path, f"class/thermal/thermal_zone{i}/temp", text)
    (tmp_path / "class/thermal/thermal_zone9").mkdir()
    assert read_heat(tmp_path) == Heat(61.234, False)


@pytest.mark.parametrize(
    ("kind", "state", "throttled"),
    [("cpufreq-cpu0", "3", True), ("cpufreq-cpu0", "0", False), ("pwm-fan", "2", False),
     ("Processor", "1", True), ("intel_powerclamp", "-1", False)],
)  # fmt: skip
def test_cooling_of_a_processor_by_the_kernel_is_throttling(
    tmp_path: Path, kind: str, state: str, throttled: bool
) -> None:
    sensor(tmp_path, "class/thermal/cooling_device0/type", kind)
    sensor(tmp_path, "class/thermal/cooling_device0/cur_state", state)
    assert read_heat(tmp_path).throttled is throttled


@pytest.mark.parametrize(("flags", "now"), [("50005", True), ("50000", False), ("0", False)])
def test_present_flags_of_a_pi_s_firmware_are_throttling(
    tmp_path: Path, flags: str, now: bool
) -> None:
    sensor(tmp_path, "devices/platform/soc/soc:firmware/get_throttled", flags)
    assert read_heat(tmp_path).throttled is now


def test_sensors_are_read_once_a_second(tmp_path: Path) -> None:
    now = 0.0
    thermometer = Thermometer(tmp_path, lambda: now)
    assert thermometer.read() == Heat()
    sensor(tmp_path, "class/thermal/thermal_zone0/temp", "50000")
    now = 0.9
    assert thermometer.read() == Heat()
    now = 1.0
    assert thermometer.read() == Heat(50.0)


# -- the commands ----------------------------------------------------------------------------------


@pytest.fixture
def board(tmp_path: Path) -> Iterator[BoardOf]:
    with board_alone(tmp_path) as made:
        yield made


def test_ps_and_top_of_a_running_board(board: BoardOf) -> None:
    board.start("--memory", "300M")
    shown = board.run("ps")
    assert shown.wait() == 0
    first, header, row = shown.out.text.splitlines()
    assert first == "cluster desk: 1 board"
    assert tuple(header.split()) == boards.PS_HEADER
    assert row.split()[:4] == ["ada", "alive", board.address, "free"]
    assert " of 300 MB" in row
    listed = board.run("ps", "--json")
    assert listed.wait() == 0
    (only,) = json.loads(listed.out.text)["boards"]
    assert (only["name"], only["does"], only["budget_bytes"]) == ("ada", "free", 300 * MB)
    watched = board.run("top", "-n", "2", "-d", "0.1")
    assert watched.wait() == 0
    lines = watched.out.text.splitlines()
    assert len(lines) == 2
    assert all("  ada  alive  does free  memory " in line for line in lines)
    sampled = board.run("top", "-n", "2", "-d", "0.1", "--json")
    assert sampled.wait() == 0
    assert [json.loads(line)["cluster"] for line in sampled.out.text.splitlines()] == ["desk"] * 2


@pytest.mark.parametrize("end", [b"q", "interrupt"])
def test_top_in_a_terminal(board: BoardOf, end: bytes | str) -> None:
    board.start()
    ours, theirs = pty.openpty()
    words = [*PICOEDGE, "top", "-d", "30"]
    environ = {**board.environ(), "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    try:
        text = read_until(ours, "free")
        assert "q ends" in text
        if isinstance(end, bytes):
            os.write(ours, end)
        else:
            process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, word: str) -> str:
    text, deadline = "", time.monotonic() + 20
    while word not in text and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            text += os.read(terminal, 4096).decode(errors="replace")
    assert word in text
    return text


def test_a_daemon_that_ends_while_it_is_watched(board: BoardOf) -> None:
    board.start()
    watched = board.run("top", "-d", "0.1")
    until(lambda: "ada" in watched.out.text, "a sample")
    assert board.stop() == 0
    assert watched.wait(10) == 1
    assert watched.err.text.startswith("error: board ada at ")


@pytest.mark.parametrize("command", ["ps", "top"])
def test_no_daemon_and_no_cluster(
    board: BoardOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.setenv("PICOEDGE_CLUSTER", str(board.keys))
    assert main([command]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: no daemon runs on this board")
    assert "picoedge run" in err
    monkeypatch.setenv("PICOEDGE_CLUSTER", str(tmp_path / "none"))
    assert main([command]) == 1
    assert "this board is in no cluster" in capsys.readouterr().err
