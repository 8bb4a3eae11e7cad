"""Cores and memory of a board and its processes, within what a container may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from picoedge.host.resources import REFAULT_BYTES, board_bytes, lasting_bytes, usable_cores
from picoedge.kernels.loader import default_threads


def board(folder: Path, groups: str, files: dict[str, str]) -> int:
    """`usable_cores` of a board with these cgroup files."""
    (folder / "groups").write_text(groups)
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return usable_cores(folder / "cgroup", folder / "groups")


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/box\n", {"box/cpu.max": "50000 100000\n"}),
        ("0::/box/inner\n", {"box/inner/cpu.max": "max 100000\n", "box/cpu.max": "9000 10000\n"}),
        (
            "3:cpu,cpuacct:/box\n",
            {"cpu/box/cpu.cfs_quota_us": "100000\n", "cpu/box/cpu.cfs_period_us": "100000\n"},
        ),
    ],
    ids=["v2", "v2 parent", "v1"],
)
def test_a_quota_of_a_core_or_less_is_one_thread(
    tmp_path: Path, groups: str, files: dict[str, str]
) -> None:
    assert board(tmp_path, groups, files) == 1


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/box\n", {"box/cpu.max": "max 100000\n"}),
        ("0::/\n", {}),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}),
        ("0::/box\n", {"box/cpu.max": "oops\n"}),
    ],
)
def test_without_a_quota_every_core_is_used(
    tmp_path: Path, groups: str, files: dict[str, str]
) -> None:
    assert board(tmp_path, groups, files) == default_threads()


def process(proc: Path, pid: int, words: list[str], own_kb: int) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "cmdline").write_text("\0".join(words) + "\0")
    (folder / "status").write_text(
        f"Name:\tx\nVmRSS:\t{own_kb + 5000} kB\nRssAnon:\t{own_kb} kB\nRssShmem:\t0 kB\n"
    )


@pytest.mark.parametrize(("files_kb", "left_kb"), [(20_000, REFAULT_BYTES >> 10), (2000, 2000)])
def test_pages_of_files_are_not_counted_as_taken_and_as_free(
    tmp_path: Path, files_kb: int, left_kb: int
) -> None:
    """What starting mapped is free memory already; a chat beside a worker then had it twice."""
    (tmp_path / "10").mkdir()
    status = f"RssAnon:\t3000 kB\nRssFile:\t{files_kb} kB\nRssShmem:\t500 kB\n"
    (tmp_path / "10" / "status").write_text(status)
    assert lasting_bytes(10, tmp_path) == (3500 + left_kb) << 10
    assert lasting_bytes(11, tmp_path) == 0


def test_memory_of_a_session_counts_as_the_boards_when_its_daemon_starts_again(
    tmp_path: Path,
) -> None:
    proc, group = tmp_path / "proc", tmp_path / "cgroup" / "box"
    group.mkdir(parents=True)
    process(proc, 10, ["python", "-m", "picoedge", "chat"], 3000)
    process(proc, 11, ["/opt/bin/python3", "/opt/bin/picoedge", "generate"], 500)
    process(proc, 12, ["python", "-m", "picoedge.cluster.worker"], 200)
    process(proc, 13, ["python", "-m", "http.server"], 9000)
    (proc / "meminfo").write_text("MemAvailable:\t100000 kB\n")
    (tmp_path / "groups").write_text("0::/box\n")
    measured = [tmp_path / "cgroup", tmp_path / "groups", proc]
    assert board_bytes(*measured) == 103_700 * 1024
    (group / "memory.max").write_text(str(8000 * 1024))
    (group / "memory.current").write_text(str(5000 * 1024))
    (group / "memory.stat").write_text("")
    (group / "cgroup.procs").write_text("10\n13\n")  # the others are outside of this limit
    assert board_bytes(*measured) == 6000 * 1024
