"""Threads by default: the cores there are, within what a container may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from picoedge.host.resources import usable_cores
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
