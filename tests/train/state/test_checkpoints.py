"""Checkpoints: whole or not there, read by other libraries, and refused when they are damaged."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from picoedge.errors import ModelError, StorageError, UnsupportedError
from picoedge.train.state import checkpoints as module
from picoedge.train.state.checkpoints import Checkpoints, Saved, read_saved, write_saved

FACTS = {"step": 7, "run": {"seed": 1}}


def saved(seed: int = 0, n: int = 600_000) -> Saved:
    random = np.random.default_rng(seed)
    return Saved({name: random.standard_normal(n).astype(np.float32) for name in ("w", "m")}, FACTS)


def test_a_checkpoint_is_read_by_us_and_by_the_library(tmp_path: Path) -> None:
    path, want = tmp_path / "a.safetensors", saved()
    write_saved(path, want)
    theirs, ours = load_file(path), read_saved(path)
    assert ours.facts == FACTS
    for name, array in want.arrays.items():
        assert theirs[name].tobytes() == ours.arrays[name].tobytes() == array.tobytes()
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "made")
    for step in (1, 2, 3, 4):
        kept.save(step, saved(step, 100))
    assert kept.steps() == [3, 4]
    found = kept.newest()
    assert found is not None
    step, newest, faults = found
    assert (step, faults) == (4, [])
    assert newest.arrays["w"].tobytes() == saved(4, 100).arrays["w"].tobytes()
    assert Checkpoints(tmp_path / "nothing").newest() is None


@pytest.mark.parametrize("at", [0, 9, 200, 500, -1])
def test_a_changed_byte_is_noticed_and_the_one_before_is_taken(tmp_path: Path, at: int) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(1, saved(1, 100))
    path = kept.save(2, saved(2, 100))
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
    found = kept.newest()
    assert found is not None
    assert found[0] == 1
    assert str(path) in found[2][0].message


@pytest.mark.parametrize("length", [0, 7, 100, 700, -4])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, length: int) -> None:
    kept = Checkpoints(tmp_path)
    path = kept.save(1, saved(1, 100))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"no sound checkpoint is left: .*step-00000001"):
        kept.newest()


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_saved(path, saved(0, 10))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="too long"):
        read_saved(path)


def test_another_version_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(1, saved(1, 100))
    monkeypatch.setattr(module, "_VERSION", 2)
    kept.save(2, saved(2, 100))
    monkeypatch.undo()
    with pytest.raises(UnsupportedError, match="version 2; this picoedge has version 1"):
        kept.newest()


def forged(path: Path, change: dict[str, Any]) -> None:
    """A header with other fields."""
    write_saved(path, saved(0, 10))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = {**json.loads(data[8 : 8 + length]), **change}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        {"w": {"dtype": "F16", "shape": [10], "data_offsets": [0, 40]}},
        {"w": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}},
        {"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}},
        {"w": {"dtype": "F32", "shape": [2, 5], "data_offsets": [0, 40]}},
        {"w": 5},
        {"__metadata__": {}},
        {"__metadata__": {"format": "picoedge-checkpoint"}},
    ],
)
def test_a_forged_header_is_an_error_of_the_file(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "a.safetensors"
    forged(path, change)
    with pytest.raises(ModelError, match=r"a\.safetensors"):
        read_saved(path)


class FullDisk:
    """os.fsync that fails as a full disk does, so many times."""

    def __init__(self, times: int) -> None:
        self.times, self._fsync = times, os.fsync

    def __call__(self, fd: int) -> None:
        if self.times:
            self.times -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        self._fsync(fd)


def test_a_full_disk_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(1, saved(1, 100))
    monkeypatch.setattr(module.os, "fsync", FullDisk(1))
    with pytest.raises(StorageError, match="no room in"):
        kept.save(2, saved(2, 100))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.safetensors"]
    assert read_saved(kept.path(1)).facts == FACTS


def test_on_a_full_disk_older_ones_make_room_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Checkpoints(tmp_path)
    for step in (1, 2):
        kept.save(step, saved(step, 100))
    monkeypatch.setattr(module.os, "fsync", FullDisk(1))
    kept.save(3, saved(3, 100))
    assert kept.steps() == [2, 3]
    monkeypatch.setattr(module.os, "fsync", FullDisk(2))
    with pytest.raises(StorageError):
        kept.save(4, saved(4, 100))
    assert kept.steps() == [3]
