"""Kept speeds of storage: of which disk, for how long, and never of a limit."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from disk_files import DAY_S, NOW, failing
from hypothesis import given, settings
from hypothesis import strategies as st

from picoedge.host import disk_speed, measurements
from picoedge.host.disk_speed import Measured, StorageSpeed, storage_speed
from picoedge.host.sysfs import Device


class Disk:
    """Stands for reading: counts how often it was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer = Measured(200e6, 100e6, True)
        self.limit: float | None = None
        self.count = 0
        monkeypatch.setattr(disk_speed, "measure_files", self._measure)
        monkeypatch.setattr(disk_speed, "read_limit", lambda device: self.limit)

    def _measure(self, *_: object) -> Measured:
        self.count += 1
        return self.answer


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "home" / "picoedge"


def speed_at(folder: Path, cache: Path, now: float, **options: Any) -> StorageSpeed:
    return storage_speed(folder, cache=cache, clock=lambda: now, **options)


def test_a_disk_is_measured_once_in_30_days(folder: Path, cache: Path, disk: Disk) -> None:
    first = speed_at(folder, cache, NOW)
    assert speed_at(folder, cache, NOW + 29 * DAY_S) == first
    assert disk.count == 1
    speed_at(folder, cache, NOW + 31 * DAY_S)
    assert disk.count == 2
    speed_at(folder, cache, NOW)  # the clock was wrong then, or is now
    assert disk.count == 3
    assert [file.name for file in cache.iterdir()] == ["probes.json"]


def test_another_card_is_measured(folder: Path, cache: Path, disk: Disk, monkeypatch: Any) -> None:
    speed_at(folder, cache, NOW)
    monkeypatch.setattr(disk_speed, "read_ahead_bytes", lambda device: 12345)
    speed_at(folder, cache, NOW)
    assert disk.count == 2
    monkeypatch.setattr(Device, "identity", "another card in the same slot")
    speed_at(folder, cache, NOW)
    assert disk.count == 3


def test_the_limit_is_never_kept(folder: Path, cache: Path, disk: Disk) -> None:
    disk.limit = 300e6
    assert speed_at(folder, cache, NOW).limit == 300e6
    disk.limit = 50e6
    assert speed_at(folder, cache, NOW).best == 50e6
    disk.limit = None
    assert speed_at(folder, cache, NOW).best == 200e6
    assert disk.count == 1


@pytest.mark.parametrize(("limit", "count"), [(210e6, 2), (249e6, 2), (251e6, 1)])
def test_a_speed_that_is_the_limits_is_not_kept(
    folder: Path, cache: Path, disk: Disk, limit: float, count: int
) -> None:
    disk.limit = limit
    for _ in range(2):
        assert speed_at(folder, cache, NOW).direct == 200e6
    assert disk.count == count


def test_a_speed_of_a_few_bytes_is_not_kept(folder: Path, cache: Path, disk: Disk) -> None:
    disk.answer = Measured(1e5, 1e5, False)
    assert not speed_at(folder, cache, NOW).enough
    disk.answer = Measured(200e6, 100e6, True)
    assert speed_at(folder, cache, NOW).direct == 200e6
    assert speed_at(folder, cache, NOW).enough


def test_a_cache_that_cannot_be_written_is_no_error(
    folder: Path, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert speed_at(folder, tmp_path / "file", NOW).direct == 200e6
    (tmp_path / "odd" / "probes.json").mkdir(parents=True)
    assert speed_at(folder, tmp_path / "odd", NOW).direct == 200e6
    assert os.listdir(tmp_path / "odd") == ["probes.json"]
    monkeypatch.setattr(tempfile, "mkstemp", failing(errno.EROFS))
    assert speed_at(folder, tmp_path / "read-only", NOW).direct == 200e6


def test_a_cache_that_is_a_pipe_is_not_waited_for(folder: Path, cache: Path, disk: Disk) -> None:
    cache.mkdir(parents=True)
    os.mkfifo(cache / "probes.json")
    assert speed_at(folder, cache, NOW).direct == 200e6


SOUND = {"direct": 3e8, "mapped": 1e8, "at": NOW}


@pytest.mark.parametrize(
    ("entry", "count"),
    [
        (SOUND, 1),
        ({**SOUND, "direct": 0}, 1),
        ({**SOUND, "limit": 5e6}, 2),
        ({"mapped": 1e8, "at": NOW}, 2),
        ({"direct": 3e8, "mapped": 1e8}, 2),
        *(({**SOUND, "direct": value}, 2)
          for value in ("3e8", True, None, -1e8, float("nan"), float("inf"), 1e200, 10**400, 1e-9)),
        ({**SOUND, "direct": 0, "mapped": 0}, 2),
        *(({**SOUND, "at": value}, 2) for value in (NOW + 5, "now", None, 0, -1)),
        *((value, 2) for value in ([], "fast", 7, {}, None)),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_is_measured_again(
    folder: Path, cache: Path, disk: Disk, entry: Any, count: int
) -> None:
    speed_at(folder, cache, NOW)
    file = cache / "probes.json"
    kept = json.loads(file.read_text())
    (key,) = kept["storage"]
    file.write_text(json.dumps({"storage": {key: entry}}))
    speed = speed_at(folder, cache, NOW)
    assert disk.count == count
    assert speed.mapped == 1e8


KEPT = {"storage": {"k": {"direct": 2e8, "mapped": 1e8, "at": NOW}}, "compute": {}}
NAMES = ("direct", "mapped")


@settings(max_examples=200)
@given(st.data())
def test_mangled_files_are_as_good_as_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "mangled"
    folder.mkdir(exist_ok=True)
    text = bytearray(json.dumps(KEPT).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        end = data.draw(st.integers(at, len(text)))
        text[at:end] = data.draw(st.binary(max_size=6))
        text = text or bytearray(b" ")
    (folder / "probes.json").write_bytes(text)
    figures = measurements.load(folder, "storage", "k", NAMES, NOW)
    assert figures is None or all(0 <= value <= 1e12 for value in figures.values())
    measurements.save(folder, "storage", "k", {"direct": 5e6, "mapped": 6e6}, NOW)
    assert measurements.load(folder, "storage", "k", NAMES, NOW) == {"direct": 5e6, "mapped": 6e6}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", "null", '{"storage": []}', '{"storage": {"k": {"k": {}}}}', "[" * 100_000,
     '{"storage": {"k": {"at": ' + "9" * 6000 + "}}}", " " * (1 << 20) + json.dumps(KEPT)],
)  # fmt: skip
def test_files_of_another_kind_are_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "probes.json").write_text(text)
    assert measurements.load(tmp_path, "storage", "k", NAMES, NOW) is None


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    for i in range(100):
        measurements.save(tmp_path, "storage", f"k{i}", {"direct": 1e6, "mapped": 1e6}, NOW + i)
    kept = json.loads((tmp_path / "probes.json").read_text())["storage"]
    assert list(kept) == [f"k{i}" for i in range(36, 100)]
    measurements.save(tmp_path, "compute", "c", {"x": 1e9}, NOW + 60 * DAY_S)
    assert json.loads((tmp_path / "probes.json").read_text())["storage"] == {}
