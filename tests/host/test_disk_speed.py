"""The speed of storage: two ways of reading, and none that the page cache makes up."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
from disk_files import MB, failing
from hypothesis import given
from hypothesis import strategies as st

from picoedge.errors import ModelError, StorageError
from picoedge.host import disk_speed
from picoedge.host.disk_speed import (
    StorageSpeed,
    cached_bytes,
    measure_files,
    storage_speed,
    units_to_read,
)
from picoedge.host.resources import peak_rss_bytes
from picoedge.host.sysfs import (
    find_device,
)
from picoedge.store.pack.packer import pack_source
from picoedge.store.pages import forget_cached
from picoedge.store.sources.source import open_source
from picoedge.store.window.io import READERS


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
