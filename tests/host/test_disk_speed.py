"""The speed of storage: the device, what is measured, and what is kept."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from picoedge.errors import ModelError, StorageError
from picoedge.host import disk_speed, measurements
from picoedge.host.block_device import (
    DEFAULT_READ_AHEAD,
    Device,
    find_device,
    read_ahead_bytes,
    read_limit,
)
from picoedge.host.disk_speed import (
    Measured,
    StorageSpeed,
    cached_bytes,
    measure_files,
    storage_speed,
    units_to_read,
)
from picoedge.host.resources import peak_rss_bytes
from picoedge.store.pack.packer import pack_source
from picoedge.store.pages import forget_cached
from picoedge.store.sources.source import open_source
from picoedge.store.window.io import READERS

MB = 1 << 20
DAY_S = 86400.0
NOW = 1.8e9
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


def test_what_is_on_no_block_device_has_a_number_alone(tmp_path: Path) -> None:
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


# Measuring


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of random bytes, large enough to tell."""
    rng = np.random.default_rng(5)
    place = tmp_path / "files"
    place.mkdir()
    for name, size in (("a", 9 * MB + 777), ("b", 3 * MB)):
        with (place / f"{name}.safetensors").open("wb") as file:
            file.write(rng.bytes(size))
            file.flush()
            os.fsync(file.fileno())
    return place


def cached_of(folder: Path) -> int:
    files = folder.glob("*.safetensors")
    return sum(cached_bytes(np.asarray(np.memmap(file, np.uint8, "r"))) for file in files)


def forget(folder: Path) -> int:
    """Empty the page cache of the files; bytes of what stays: a tmpfs has nowhere else for them."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            forget_cached(opened.fileno(), 0, file.stat().st_size)
    return cached_of(folder)


def measure_storage(path: Path, **options: Any) -> StorageSpeed:
    return storage_speed(path, cache=path.with_name("cache"), **options)


def test_a_small_pack_gives_figures(tmp_path: Path) -> None:
    out = tmp_path / "tiny.pico"
    pack_source(open_source(tiny_model.write_tiny_model(tmp_path / "tiny")), out, bits=8)
    least = forget(out)
    speed = measure_storage(out)
    assert speed.mapped > 0
    assert speed.best > 0
    assert not speed.enough
    assert speed.device.startswith(find_device(out.stat().st_dev).number)
    assert cached_of(out) <= least


def test_nothing_stays_in_the_page_cache_or_in_memory(folder: Path) -> None:
    least = forget(folder)
    for file in folder.iterdir():
        assert file.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = peak_rss_bytes()
    assert measure_storage(folder).enough
    assert cached_of(folder) <= least
    assert peak_rss_bytes() - before < 16 * MB


def test_the_two_ways_read_different_bytes(folder: Path) -> None:
    sizes = {"a": 900 * MB, "b": 10 * MB}
    direct, mapped = units_to_read(sizes)
    assert {unit.file for unit in (*direct, *mapped)} == {"a"}
    assert direct[-1].end <= mapped[0].offset
    assert sum(unit.nbytes for unit in direct) == disk_speed.MOST_BYTES
    assert sum(unit.nbytes for unit in mapped) == disk_speed.MOST_BYTES


@given(st.lists(st.integers(1, 300 * MB), min_size=1, max_size=6))
def test_pieces_lie_within_their_files(sizes: list[int]) -> None:
    named = {f"{i}": size for i, size in enumerate(sizes)}
    for units in units_to_read(named):
        assert units
        assert all(0 <= u.offset < u.end <= named[u.file] and u.offset % 4096 == 0 for u in units)
        crumbs = 2 * 4096 * len(sizes)
        assert sum(u.nbytes for u in units) <= disk_speed.MOST_BYTES + crumbs


def test_a_single_file_is_measured_as_well(folder: Path) -> None:
    assert measure_storage(folder / "a.safetensors").mapped > 0


def test_without_unbuffered_reads_there_is_one_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def no_direct(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", no_direct)
    speed = measure_storage(folder)
    assert speed.direct == 0.0
    assert speed.best == speed.effective_mapped > 0
    assert str(speed).startswith("no direct reads, ")


def failing(number: int) -> Any:
    def fail(*args: Any, **options: Any) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_opened_unbuffered_but_not_read_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", failing(errno.EINVAL))
    assert measure_storage(folder).direct == 0.0


def test_a_broken_disk_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", failing(errno.EIO))
    with pytest.raises(StorageError, match="Input/output error") as caught:
        measure_storage(folder)
    assert str(folder) in caught.value.message


def test_files_that_are_cut_meanwhile_are_an_error(folder: Path) -> None:
    with pytest.raises(StorageError, match="a file was cut"):
        measure_files(folder, {"a.safetensors": 20 * MB}, 0)


def test_a_disk_that_hangs_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    back, real = threading.Event(), os.preadv

    def preadv(*args: Any) -> int:
        assert back.wait(60)
        return real(*args)

    monkeypatch.setattr(os, "preadv", preadv)
    running = set(threading.enumerate())
    with pytest.raises(StorageError, match="within 0 s"):
        measure_storage(folder, timeout_s=0.05)
    ours = set(threading.enumerate()) - running
    assert len(ours) == 1 + READERS
    assert all(thread.daemon for thread in ours)
    back.set()
    for thread in ours:
        thread.join(60)
        assert not thread.is_alive()


def test_files_held_in_memory_by_others_do_not_pass_for_a_fast_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_speed, "_direct", lambda *_: 1e6)
    maps = [np.memmap(file, np.uint8, "r") for file in folder.iterdir()]
    sums = [int(array[::4096].sum()) for array in maps]  # mapped pages cannot be dropped
    assert measure_storage(folder).mapped == 1e6
    assert len(sums) == 2


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(ModelError, match="nothing to read"):
        measure_storage(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        measure_storage(tmp_path / "none.pico")


# What is kept


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
