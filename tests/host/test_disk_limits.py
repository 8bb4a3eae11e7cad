"""The device below a file: its read-ahead, and the limits of control groups."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from disk_files import MB

from picoedge.host.disk_speed import StorageSpeed
from picoedge.host.sysfs import (
    DEFAULT_READ_AHEAD,
    Device,
    find_device,
    read_ahead_bytes,
    read_limit,
)

CARD = os.makedev(179, 2)
DISK = Device("254:0")


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """/sys of a board with an SD card, of which the second partition is in use."""
    disk = "devices/mmc/block/mmcblk0"
    files = {
        f"{disk}/dev": "179:0\n",
        f"{disk}/queue/read_ahead_kb": "256\n",
        f"{disk}/device/cid": "035344534333324785\n",
        f"{disk}/device/name": "SC32G\n",
        f"{disk}/mmcblk0p2/dev": "179:2\n",
        f"{disk}/mmcblk0p2/partition": "2\n",
    }
    write_files(tmp_path / "sys", files)
    links = tmp_path / "sys/dev/block"
    links.mkdir(parents=True)
    (links / "179:0").symlink_to(f"../../{disk}")
    (links / "179:2").symlink_to(f"../../{disk}/mmcblk0p2")
    return tmp_path / "sys"


def test_a_partition_is_known_by_its_disk(card: Path) -> None:
    device = find_device(CARD, card)
    assert device.numbers == ("179:2", "179:0")
    assert str(device) == "179:2 mmcblk0p2 SC32G"
    assert device.identity == "035344534333324785"
    assert read_ahead_bytes(device, card) == 256 << 10


def test_the_file_systems_own_read_ahead_counts(card: Path) -> None:
    write_files(card, {"class/bdi/179:0/read_ahead_kb": "4096\n"})
    assert read_ahead_bytes(find_device(CARD, card), card) == 4 * MB


@pytest.mark.parametrize("text", ["", "many", "-1", "99999999999999"])
def test_an_impossible_read_ahead_is_not_believed(tmp_path: Path, text: str) -> None:
    write_files(tmp_path, {"class/bdi/254:0/read_ahead_kb": text})
    assert read_ahead_bytes(DISK, tmp_path) == DEFAULT_READ_AHEAD


def test_a_file_system_on_no_block_device_has_a_number_alone(tmp_path: Path) -> None:
    device = find_device(os.makedev(0, 45), tmp_path)
    assert (str(device), device.numbers, device.identity) == ("0:45", ("0:45",), "")


def limit_of(root: Path, groups: str, files: dict[str, str], device: Device = DISK) -> float | None:
    write_files(root, {"groups": groups, **files})
    return read_limit(device, root, root / "groups")


V1 = "blkio.throttle.read_bps_device"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({f"a/b/{V1}": ""}, None),
        ({f"a/b/{V1}": "254:0 1048576\n"}, 1048576.0),
        ({f"a/b/{V1}": "8:0 1000\n254:0 5000000\n"}, 5e6),
        ({f"a/b/{V1}": "8:0 1000\n"}, None),
        ({f"a/b/{V1}": "254:0 lots\n254:0\n\n254:0 0\n"}, None),
        # The kernel lets a group be faster than the one it is in.
        ({f"a/b/{V1}": "", f"a/{V1}": "254:0 1000\n"}, None),
        # A container sees its own group as the root.
        ({V1: "254:0 1000\n"}, 1000.0),
    ],
)
def test_limits_of_the_first_version(
    tmp_path: Path, files: dict[str, str], limit: float | None
) -> None:
    files = {f"blkio/{name}": text for name, text in files.items()}
    assert limit_of(tmp_path, "7:blkio:/a/b\n1:cpu:/a\n0::/\n", files) == limit


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"a/b/io.max": "254:0 rbps=2097152 wbps=max riops=max wiops=max\n"}, 2097152.0),
        ({"a/b/io.max": "254:0 rbps=max wbps=1000 riops=max wiops=max\n"}, None),
        ({"a/b/io.max": "8:0 rbps=1000\n"}, None),
        ({"a/b/io.max": "254:0 rbps=5000\n", "a/io.max": "254:0 rbps=3000\n"}, 3000.0),
        ({"a/io.max": "254:0 rbps=3000 wbps=max\n"}, 3000.0),
        ({"a/b/io.max": "\x00\xff rbps\n=\n254:0 rbps=\n"}, None),
    ],
)
def test_limits_of_the_second_version(
    tmp_path: Path, files: dict[str, str], limit: float | None
) -> None:
    assert limit_of(tmp_path, "0::/a/b\n", files) == limit


@pytest.mark.parametrize("number", ["179:0", "179:2"])
def test_a_limit_may_be_set_on_the_disk_or_the_partition(
    card: Path, tmp_path: Path, number: str
) -> None:
    device = find_device(CARD, card)
    first = limit_of(tmp_path / "1", "7:blkio:/\n", {f"blkio/{V1}": f"{number} 4000\n"}, device)
    second = limit_of(tmp_path / "2", "0::/a\n", {"a/io.max": f"{number} rbps=4000\n"}, device)
    assert (first, second) == (4000.0, 4000.0)


def test_a_limit_holds_for_both_ways() -> None:
    speed = StorageSpeed(90e6, 40e6, 50e6, 0, "254:0")
    assert (speed.effective_direct, speed.effective_mapped, speed.best) == (50e6, 40e6, 50e6)
    free = dataclasses.replace(speed, limit=None)
    assert (free.effective_direct, free.effective_mapped, free.best) == (90e6, 40e6, 90e6)
