"""Emulated boards, for real: namespaces, limits, links, and that nothing is left of them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from cluster_boards import until

from hw.lab import Board, BoardLimits, Lab, LabError, LinkShape, leftovers
from hw.lab.__main__ import main
from hw.lab.disks import disk_of

pytest_plugins = ["lab_fixtures"]

MakeLab = Callable[..., Lab]
MB = 1 << 20
SHAPES = [None, LinkShape()]

LISTEN = """
import os, socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind((os.environ["LAB_ADDRESS"], 7000))
    print("ready", flush=True)
    while True:
        data, peer = s.recvfrom(2000)
        s.sendto(data, peer)
"""
ASK = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(float(sys.argv[2]))
    s.sendto(b"hello", (sys.argv[1], 7000))
    try:
        print(s.recv(2000).decode())
    except TimeoutError:
        print("silence")
"""


def start_echo(board: Board) -> None:
    process = board.start([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def ask(board: Board, other: Board, timeout_s: float = 2.0) -> str:
    command = [sys.executable, "-c", ASK, other.address, str(timeout_s)]
    return board.run(command, check=True).stdout.strip()


# -- boards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_boards_are_apart_but_for_their_links(lab: MakeLab, shape: LinkShape | None) -> None:
    boards = lab(3, shape).boards
    assert [board.name for board in boards] == ["board1", "board2", "board3"]
    devices = [boards[0].run(["ip", "-br", "link"], check=True).stdout.split()]
    assert {word.split("@")[0] for word in devices[0] if word[:2] in ("lo", "et")} == {"lo", "eth0"}
    start_echo(boards[1])
    assert ask(boards[0], boards[1]) == ask(boards[2], boards[1]) == "hello"
    assert ask(boards[1], boards[1]) == "hello"
    assert ask(boards[0], boards[2], 0.05) == "silence"


def test_labs_do_not_meet(lab: MakeLab) -> None:
    one, other = lab(2), lab(2)
    start_echo(other.boards[1])
    assert ask(one.boards[0], other.boards[1], 0.05) == "silence"
    assert one.boards[0].folder != other.boards[0].folder


def test_a_process_knows_its_board(lab: MakeLab) -> None:
    made = lab(2)
    board = made.boards[1]
    env = {"PATH": os.environ["PATH"], "MORE": "yes"}
    done = board.run(["env"], env=env, cwd=board.folder, check=True)
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert (seen["LAB_BOARD"], seen["LAB_ADDRESS"]) == ("board2", board.address)
    assert seen["LAB_ADDRESSES"] == ",".join(b.address for b in made.boards)
    assert (seen["MORE"], seen["PWD"]) == ("yes", str(board.folder))
    assert board.run(["cat"], stdin="a b").stdout == "a b"
    assert board.run(["printf", "\\377"]).stdout == "\ufffd"
    assert board.run(["sh", "-c", "echo bad >&2; exit 3"]).stderr == "bad\n"
    with pytest.raises(LabError, match="no command 'nothing-like-it'"):
        board.start(["nothing-like-it"])
    with pytest.raises(subprocess.TimeoutExpired):
        board.run(["sleep", "60"], timeout_s=0.05)
    with pytest.raises(subprocess.CalledProcessError):
        board.run(["false"], check=True)
    assert board.pids() == []


def test_all_of_a_board_is_killed(lab: MakeLab) -> None:
    one, other = lab(2).boards
    survivor = other.start(["sleep", "60"])
    shell = one.start(["sh", "-c", "setsid sleep 60 & echo; wait"], stdout=subprocess.PIPE)
    assert shell.stdout is not None
    shell.stdout.readline()
    assert len(one.pids()) == 2
    assert shell.pid in one.pids()
    one.kill()
    assert one.pids() == []
    assert shell.wait() == -signal.SIGKILL
    assert survivor.poll() is None
    assert one.run(["echo", "again"]).stdout == "again\n"


def test_a_stopped_board_says_nothing_until_it_resumes(lab: MakeLab) -> None:
    one, other = lab(2).boards
    start_echo(other)
    other.stop()
    assert psutil.Process(other.pids()[0]).status() == psutil.STATUS_STOPPED
    assert ask(one, other, 0.1) == "silence"
    other.resume()
    assert ask(one, other) == "hello"


def test_files_are_copied_not_shared(lab: MakeLab, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/part").write_bytes(bytes(range(256)))
    boards = lab(2).boards
    copies = [board.copy(tmp_path / "model") / "part" for board in boards]
    assert {copy.read_bytes() for copy in copies} == {bytes(range(256))}
    assert copies[0].stat().st_ino != copies[1].stat().st_ino
    assert boards[0].copy(tmp_path / "model/part", "other").name == "other"


# -- limits ----------------------------------------------------------------------------------------

FILL = "import sys; x = bytearray(int(sys.argv[1])); x[::4096] = b'1' * len(x[::4096])"


def test_a_board_cannot_have_more_memory_than_it_has(lab: MakeLab) -> None:
    board = lab(1, None, BoardLimits(memory_bytes=64 * MB)).boards[0]
    command = [sys.executable, "-c", FILL]
    assert board.run([*command, str(8 * MB)]).returncode == 0
    assert 8 * MB < board.peak_bytes() <= 64 * MB
    assert not board.was_killed()
    assert board.run([*command, str(128 * MB)]).returncode == -signal.SIGKILL
    assert board.was_killed()
    board.limit(memory_bytes=256 * MB)
    assert board.run([*command, str(128 * MB)]).returncode == 0
    board.unlimit(memory=True)
    assert board.run([*command, str(300 * MB)]).returncode == 0


def quota_of(board: Board) -> float | None:
    """CPUs, as the kernel has them."""
    assert board.group.cpu is not None
    if board.group.version == 2:
        quota, period = (board.group.cpu / "cpu.max").read_text().split()
    else:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, period = ((board.group.cpu / name).read_text().strip() for name in names)
    assert int(period) <= 10000
    return None if quota in ("max", "-1") else int(quota) / int(period)


def test_a_boards_share_of_the_cpu_changes_while_it_runs(lab: MakeLab) -> None:
    one, other = lab(2, None, BoardLimits(cpu=0.5)).boards
    assert (quota_of(one), quota_of(other)) == (0.5, 0.5)
    busy = one.start([sys.executable, "-c", "while True: pass"])
    one.limit(cpu=0.1)
    assert quota_of(one) == 0.1
    before, began = psutil.Process(busy.pid).cpu_times().user, time.perf_counter()
    time.sleep(0.5)
    used = psutil.Process(busy.pid).cpu_times().user - before
    assert used < 0.4 * (time.perf_counter() - began)
    one.unlimit(cpu=True)
    assert quota_of(one) is None
    with pytest.raises(LabError, match="more than 0"):
        one.limit(cpu=0)


def test_a_board_reads_no_faster_than_its_disk(lab: MakeLab, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * MB))
    limits = BoardLimits(disk_bytes_per_s=8 * MB)
    try:
        disk_of(tmp_path)
    except LabError as error:  # a container's folder that is on no disk: the lab says so
        with pytest.raises(LabError, match=str(error)[:20]):
            lab(1, None, limits, folder=tmp_path)
        return
    board = lab(1, None, limits, folder=tmp_path).boards[0]
    copy, before, began = board.copy(tmp_path / "file"), board.read_bytes(), time.perf_counter()
    board.run(["cat", copy], check=True)
    assert time.perf_counter() - began > 0.3
    assert board.read_bytes() - before >= 4 * MB


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_links_and_boards_are_cut_and_healed(lab: MakeLab, shape: LinkShape | None) -> None:
    made = lab(3, shape)
    one, two, three = made.boards
    start_echo(two)
    assert ask(one, two) == "hello"
    made.link(0, 1).heal()  # as it is
    for _ in range(2):
        made.link(0, 1).cut()
    assert ask(one, two, 0.1) == "silence"
    assert ask(three, two) == "hello"
    made.link(one, two).heal()
    assert ask(one, two) == "hello"
    made.link(1, 0, one_way=True).cut()
    assert ask(one, two, 0.1) == "silence"
    two.cut()
    assert ask(three, two, 0.1) == "silence"
    assert ask(two, two) == "hello"
    two.heal()
    assert ask(one, two) == ask(three, two) == "hello"
    with pytest.raises(LabError, match="no link to itself"):
        made.link(one, 0)


def test_delay_and_rate_are_what_was_asked_for(lab: MakeLab) -> None:
    made = lab(2, LinkShape(delay_s=0.005))
    (achieved,) = made.measure(seconds=0.1)
    assert achieved.pair == ("board1", "board2")
    assert 10 <= achieved.ping_ms < 100
    made.link(0, 1).shape(LinkShape(rate_bytes_per_s=2e6))
    (achieved,) = made.measure(seconds=0.3)
    assert achieved.ping_ms < 10
    assert 1e6 < achieved.bulk_bytes_per_s < 2.2e6
    made.link(0, 1).shape(LinkShape())
    made.boards[1].limit(port_bytes_per_s=2e6)
    (achieved,) = made.measure(seconds=0.3)
    assert 1e6 < achieved.bulk_bytes_per_s < 2.2e6


def test_loss_is_made_up_for(lab: MakeLab) -> None:
    made = lab(2, LinkShape(loss=0.05))
    (achieved,) = made.measure(seconds=0.2)
    assert achieved.bulk_bytes_per_s > 0
    counts = made.counts()
    assert 0 < counts["lost"] < counts["passed"]


def test_a_plain_link_has_no_shape(lab: MakeLab) -> None:
    made = lab(2)
    (achieved,) = made.measure(seconds=0.05)
    assert achieved.ping_ms < 10
    with pytest.raises(LabError, match="plain links have no shape"):
        made.link(0, 1).shape(LinkShape(delay_s=0.1))
    with pytest.raises(LabError, match="plain"):
        made.boards[0].limit(port_bytes_per_s=1e6)


# -- nothing is left -------------------------------------------------------------------------------

OWNER = """
import json, os, sys, time
from hw.lab import Lab, LinkShape
with Lab(2, LinkShape() if sys.argv[1] == "shaped" else None) as lab:
    board = lab.boards[0]
    board.start(["sh", "-c", "setsid sleep 1000 & sleep 1000"])
    while len(board.pids()) < 3:
        time.sleep(0.001)
    print(json.dumps({
        "pids": board.pids(),
        "paths": [str(p) for b in lab.boards for p in (b.folder.parent, *b.group.folders)],
        "namespaces": [os.stat(b.namespace.path).st_ino for b in lab.boards],
    }), flush=True)
    if sys.argv[2] == "wait":
        time.sleep(1000)
"""


def start_owner(shape: str, then: str) -> tuple[subprocess.Popen[str], dict[str, list[str]]]:
    root = str(Path(leftovers.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, shape, then],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert process.stdout is not None
    made = json.loads(process.stdout.readline())
    assert all(Path(path).exists() for path in made["paths"])
    return process, made


def is_alive(pid: int) -> bool:
    """Orphans that have ended may still wait to be reaped."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left_of(made: dict[str, list[str]]) -> list[str]:
    left = [path for path in made["paths"] if Path(path).exists()]
    left += [f"process {pid}" for pid in made["pids"] if is_alive(int(pid))]
    for space in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            if space.stat().st_ino in made["namespaces"]:
                left.append(str(space))
        except OSError:
            continue
    return left


@pytest.mark.parametrize("shape", ["plain", "shaped"])
def test_nothing_is_left_of_a_lab(shape: str) -> None:
    process, made = start_owner(shape, "end")
    process.communicate()  # to the end of its pipe: all that it started has ended too
    assert process.returncode == 0
    assert left_of(made) == []


@pytest.mark.parametrize("shape", ["plain", "shaped"])
def test_nothing_is_left_when_its_owner_is_killed(shape: str) -> None:
    process, made = start_owner(shape, "wait")
    process.kill()
    process.communicate(timeout=20)  # the guardian, the switch and the boards hold the pipe
    assert left_of(made) == []


def test_remains_of_a_killed_lab_are_swept_by_the_next_lab() -> None:
    process, made = start_owner("shaped", "wait")
    (guardian,) = [
        child
        for child in psutil.Process(process.pid).children()
        if "hw.lab.guardian" in child.cmdline()
    ]
    guardian.kill()
    process.kill()
    process.wait()
    select.select([process.stdout], [], [], 0)
    assert left_of(made)
    leftovers.sweep()  # unless a lab of another process has
    process.communicate(timeout=20)
    until(lambda: left_of(made) == [], "nothing is left")


def test_a_lab_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    before = set(leftovers.RECORDS.glob("*"))
    with (
        pytest.raises(LabError, match="plain links have no shape"),
        Lab(2, None, BoardLimits(port_bytes_per_s=1e6), folder=tmp_path),
    ):
        pass
    assert set(leftovers.RECORDS.glob("*")) <= before
    assert list(tmp_path.iterdir()) == []


# -- from the shell --------------------------------------------------------------------------------


def test_the_shell_measures_a_lab(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--delay", "2ms", "--json"]) == 0
    (link,) = json.loads(capsys.readouterr().out)["links"]
    assert link["pair"] == ["board1", "board2"]
    assert 4 <= link["ping_ms"] < 40
    assert link["bulk_bytes_per_s"] > 0


def test_the_shell_runs_a_command_on_boards(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--on", "2", "--memory", "64M", "--", "sh", "-c", "echo $LAB_BOARD"]) == 0
    assert capfd.readouterr().out == "board2\n"
    assert main(["--on", "all", "--", "sh", "-c", "echo $LAB_BOARD; exit 5"]) == 5
    assert sorted(capfd.readouterr().out.split()) == ["board1", "board2"]
    assert main(["--on", "3", "--", "true"]) == 3
    assert "boards are 1 to 2" in capfd.readouterr().err
