"""A board's memory as its daemon gives it: programs that ask no daemon leave less."""

from __future__ import annotations

from pathlib import Path

import pytest

from picoedge.daemon.memory import board_memory
from picoedge.daemon.memory.board_memory import BoardMemory, alone_bytes

MB = 1 << 20
STATUS = "Name:\tpython\nRssAnon:\t  100 kB\nRssFile:\t 5000 kB\nRssShmem:\t  20 kB\n"


def process(proc: Path, pid: int, command: str, folder: Path) -> None:
    there = proc / str(pid)
    there.mkdir(parents=True)
    (there / "cmdline").write_text(command.replace(" ", "\0") + "\0")
    (there / "environ").write_text(f"HOME=/root\0PICOEDGE_CLUSTER={folder}\0")
    (there / "status").write_text(STATUS)


@pytest.mark.parametrize(
    ("command", "counts"),
    [
        ("python -m picoedge chat smollm2", True),
        ("/usr/bin/picoedge --debug generate smollm2 -p hi", True),
        ("python -m picoedge chat smollm2 --cluster", False),  # its memory is lent to it
        ("python -m picoedge run", False),
        ("python -m picoedge.cluster.worker chat", False),
        ("vim chat", False),
    ],
)
def test_a_chat_on_this_board_alone_has_memory(tmp_path: Path, command: str, counts: bool) -> None:
    process(tmp_path, 77, command, tmp_path / "cluster")
    folder = tmp_path / "cluster"
    found = alone_bytes(folder, {77: 0}, tmp_path)
    assert found == ({77: 120 << 10} if counts else {})
    starting = alone_bytes(folder, {}, tmp_path)
    assert starting == ({77: 64 << 20} if counts else {})
    said = {77: 50 * MB, 78: 900 * MB}  # 78 has ended, or is no chat
    assert alone_bytes(folder, said, tmp_path) == ({77: 50 * MB} if counts else {})
    assert alone_bytes(tmp_path / "other", {}, tmp_path) == {}  # another board on this machine


def test_a_job_gets_what_others_leave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone: dict[int, int] = {}
    memory = BoardMemory(200 * MB, lambda: 0.0, str, tmp_path)
    monkeypatch.setattr(board_memory, "rss_bytes", lambda: 20 * MB)
    monkeypatch.setattr(board_memory, "alone_bytes", lambda folder, said: alone)
    free = memory.job_bytes
    alone[77] = 90 * MB
    assert memory.job_bytes == free - 90 * MB
    alone[78] = 900 * MB
    assert memory.job_bytes == 0


def test_the_ledger_shows_chats_on_this_board_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now, alone, looks = [0.0], {77: 90 * MB}, [0]

    def look(folder: Path, said: dict[int, int]) -> dict[int, int]:
        looks[0] += 1
        return alone

    memory = BoardMemory(200 * MB, lambda: now[0], str, tmp_path)
    monkeypatch.setattr(board_memory, "rss_bytes", lambda: 20 * MB)
    monkeypatch.setattr(board_memory, "alone_bytes", look)
    assert [(use["use"], use["bytes"]) for use in memory.report()] == [("answer", 90 * MB)]
    for now[0] in range(1, 10):  # beats ask for it four times a second
        memory.report()
    assert looks == [1]
    now[0] = board_memory.ALONE_LOOK_S + 5
    assert [use["age_s"] for use in memory.report()] == [15]  # as old as the first look at it
    alone.clear()
    assert memory.job_bytes > 0
    assert memory.report() == []
