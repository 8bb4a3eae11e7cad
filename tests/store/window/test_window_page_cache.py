"""What a window leaves in the page cache: no more than itself, and nothing once it is closed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cache import cache_folder
from window_models import Keep, keep_none, keep_others, plan_of

from picoedge.files import sync_tree
from picoedge.host.disk_speed import cached_bytes
from picoedge.host.sysfs import find_device, read_ahead_bytes
from picoedge.store.pack.reader import Pack
from picoedge.store.pages import forget_cached
from picoedge.store.reads import Files
from picoedge.store.window.io import DirectIO, MappedIO, WindowIO
from picoedge.store.window.plan import WindowPlan
from picoedge.store.window.read_ahead import Window

SILENCE_S = 0.1


@pytest.fixture(scope="module")
def packed(smollm2_pack: Path) -> Iterator[Pack]:
    """A copy that no process has in memory, on a disk: /tmp may be nothing but page cache."""
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        copy = Path(folder, "own.pico")
        shutil.copytree(smollm2_pack, copy)
        sync_tree(copy)
        for path in copy.iterdir():
            with path.open("rb") as file:
                forget_cached(file.fileno(), 0, path.stat().st_size)
        yield Pack.open(copy)


class Cache:
    """The pages of files that are cached. Looking at them does not touch them."""

    def __init__(self, packed: Pack) -> None:
        self._maps = [
            np.memmap(path, np.uint8, "r") for path in sorted(packed.path.glob("layer-*"))
        ]

    @property
    def nbytes(self) -> int:
        return sum(cached_bytes(mapped) for mapped in self._maps)


def opened(packed: Pack, plan: WindowPlan, io: str, ahead: int) -> WindowIO:
    files = Files(packed.path, direct=io == "direct")
    if io == "mmap":
        return MappedIO(files, plan.streamed, ahead)
    places = dict(zip(plan.streamed, plan.ring.places, strict=True))
    return DirectIO(files, plan.ring.nbytes, places)


def most_cached(window: Window, io: WindowIO, plan: WindowPlan, cache: Cache) -> int:
    """Of three passes in which every byte is used."""
    most = 0
    for n in range(3 * len(plan.streamed)):
        index = n % len(plan.streamed)
        window.acquire(index)
        io.array(plan.streamed[index]).max()
        most = max(most, cache.nbytes) if n % 5 == 0 else most
        window.release(index)
    return most


def wait_for_silence(cache: Cache) -> None:
    """Until readers, and the kernel that reads ahead of them, have read all they may."""
    seen, since = cache.nbytes, time.monotonic()
    while time.monotonic() - since < SILENCE_S:
        time.sleep(SILENCE_S / 10)
        if cache.nbytes != seen:
            seen, since = cache.nbytes, time.monotonic()


@pytest.mark.parametrize("io", ["direct", "mmap"])
@pytest.mark.parametrize("keep", [keep_none, keep_others])
@pytest.mark.parametrize("most", [1 << 18, 1 << 20])
def test_the_page_cache_holds_the_window_and_no_more(
    packed: Pack, io: str, keep: Keep, most: int
) -> None:
    plan = plan_of(packed, most, lambda i, unit: unit.kind == "head" or keep(i, unit), room=4)
    ahead = 2 * read_ahead_bytes(find_device(os.stat(packed.path).st_dev))
    cache = Cache(packed)
    before = cache.nbytes
    assert before < plan.streamed_bytes / 20  # headers
    reader = opened(packed, plan, io, ahead)
    window = Window(plan.streamed, plan.ring, reader, folder=packed.path, readers=1)
    try:
        cached = most_cached(window, reader, plan, cache)
        wait_for_silence(cache)
    finally:
        window.close()
    assert cached - before <= (plan.ring.nbytes + ahead if io == "mmap" else 0)
    assert cache.nbytes <= before
