"""Packing that does not end well: files left behind, and messages."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from store_models import write_gguf

from picoedge.errors import ModelError, StorageError, TextError
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import ModelSource, open_source


def left_behind(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "m.gguf")


class Stop(BaseException):
    """What Ctrl-C or a signal handler raises."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop, ValueError])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, source: ModelSource, error: type[BaseException], share: float
) -> None:
    def progress(done: int, total: int) -> None:
        if done >= share * total:
            raise error

    with pytest.raises(error):
        pack_source(source, tmp_path / "m.pico", progress=progress)
    assert left_behind(tmp_path) == []


def test_an_interruption_leaves_the_old_pack(tmp_path: Path, source: ModelSource) -> None:
    pack_source(source, tmp_path / "m.pico")
    before = Pack.open(tmp_path / "m.pico").source

    def write_text(given: ModelSource, folder: Path) -> None:
        raise TextError("no tokenizer")

    with pytest.raises(TextError):
        pack_source(source, tmp_path / "m.pico", write_text=write_text)
    assert Pack.open(tmp_path / "m.pico").source == before
    assert left_behind(tmp_path) == ["m.pico"]


def test_a_pack_is_replaced_when_the_new_one_is_whole(tmp_path: Path, source: ModelSource) -> None:
    pack_source(source, tmp_path / "m.pico")
    write_gguf(tmp_path / "m.gguf", "Q8_0", seed=5)
    pack_source(open_source(tmp_path / "m.gguf"), tmp_path / "m.pico")
    assert Pack.open(tmp_path / "m.pico").head().spec.format.name == "q8"
    assert left_behind(tmp_path) == ["m.pico"]


def test_a_path_that_is_no_pack_is_not_replaced(tmp_path: Path, source: ModelSource) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "letter").write_text("dear")
    (tmp_path / "file").write_text("x")
    for name in ("docs", "file"):
        with pytest.raises(StorageError, match="not a pack"):
            pack_source(source, tmp_path / name)
    assert (tmp_path / "docs" / "letter").read_text() == "dear"
    assert left_behind(tmp_path) == ["docs", "file"]


def test_a_full_disk_is_told_with_the_figures(
    tmp_path: Path, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    real = os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr("picoedge.files.os.pwrite", pwrite)
    with pytest.raises(StorageError, match=r"no room in .* needed, .* free"):
        pack_source(source, tmp_path / "m.pico")
    assert left_behind(tmp_path) == []


def test_a_disk_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.statvfs_result((4096, 4096, 10**6, 1, 1, 10**6, 1, 1, 0, 255))
    monkeypatch.setattr("picoedge.files.os.statvfs", lambda path: full)
    with pytest.raises(StorageError, match=r"needed, 4 KB free"):
        pack_source(source, tmp_path / "m.pico", progress=lambda done, total: pytest.fail("wrote"))
    assert left_behind(tmp_path) == []


def test_a_short_write_is_continued(
    tmp_path: Path, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr("picoedge.files.os.pwrite",
                        lambda fd, data, at: real(fd, data[: 1 + len(data) // 2], at))  # fmt: skip
    pack_source(source, tmp_path / "m.pico")
    monkeypatch.undo()
    pack_source(source, tmp_path / "n.pico")
    first, second = (Pack.open(tmp_path / name) for name in ("m.pico", "n.pico"))
    assert first.head().data.tobytes() == second.head().data.tobytes()


def test_an_unwritable_place_is_named(tmp_path: Path, source: ModelSource) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        pack_source(source, tmp_path / "file" / "m.pico")


def test_a_source_that_shrinks_while_it_is_read(tmp_path: Path, source: ModelSource) -> None:
    def progress(done: int, total: int) -> None:
        os.truncate(tmp_path / "m.gguf", 20_000)

    with pytest.raises(ModelError, match=r"m\.gguf ends at byte"):
        pack_source(source, tmp_path / "m.pico", progress=progress)
    assert left_behind(tmp_path) == []


def test_leftovers_of_killed_packers_are_swept_but_not_those_at_work(
    tmp_path: Path, source: ModelSource
) -> None:
    dead, alive = (tmp_path / f"m.pico.partial-{name}" for name in ("dead", "alive"))
    for folder in (dead, alive):
        folder.mkdir()
        (folder / ".lock").touch()
        (folder / "head.safetensors").touch()
    with (alive / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pack_source(source, tmp_path / "m.pico")
    assert left_behind(tmp_path) == ["m.pico", "m.pico.partial-alive"]


def test_a_pack_set_aside_by_a_killed_process_comes_back(
    tmp_path: Path, source: ModelSource
) -> None:
    target = tmp_path / "m [1].pico"
    pack_source(source, target)
    before = Pack.open(target).source
    shutil.copytree(target, tmp_path / "m [1].pico.partial-dead")
    (tmp_path / "m [1].pico.partial-dead" / ".lock").touch()
    target.rename(tmp_path / "m [1].pico.old-dead")

    def write_text(given: ModelSource, folder: Path) -> None:
        raise TextError("no tokenizer")

    with pytest.raises(TextError):
        pack_source(source, target, write_text=write_text)
    assert Pack.open(target).source == before
    assert left_behind(tmp_path) == ["m [1].pico"]


def test_a_pack_set_aside_by_a_living_process_is_left_alone(
    tmp_path: Path, source: ModelSource
) -> None:
    old, alive = tmp_path / "m.pico.old-1", tmp_path / "m.pico.partial-1"
    pack_source(source, tmp_path / "m.pico")
    (tmp_path / "m.pico").rename(old)
    alive.mkdir()
    with (alive / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pack_source(source, tmp_path / "m.pico")
    assert Pack.open(old).source == Pack.open(tmp_path / "m.pico").source
    assert not (tmp_path / "m.pico" / ".lock").exists()
