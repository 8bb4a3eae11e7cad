"""What a power cut leaves of a folder: only what fsync was called for is sure to be there."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.life.faults.preload import compiled
from bench.power.disk import Disk, torn

SEEDS = 8
SAFE = """
import os, sys
folder = sys.argv[1]
def synced(path, flags=os.O_RDONLY):
    fd = os.open(path, flags); os.fsync(fd); os.close(fd)
with open(folder + "/.new", "w") as file:
    file.write("new" * 1000); file.flush(); os.fsync(file.fileno())
os.replace(folder + "/.new", folder + "/file")
synced(folder)
os.mkdir(folder + "/sub"); synced(folder)
with open(folder + "/sub/log", "w") as file:
    file.write("one\\n"); file.flush(); os.fsync(file.fileno())
synced(folder + "/sub")
"""
UNSAFE = """
import os, sys
folder = sys.argv[1]
with open(folder + "/.new", "w") as file:
    file.write("new" * 1000)
os.replace(folder + "/.new", folder + "/file")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("power/shadow.c", tmp_path_factory.mktemp("library"))


def after_cut(library: Path, tmp: Path, program: str, seed: int) -> Path:
    root = tmp / f"root{seed}"
    root.mkdir()
    (root / "file").write_text("old")
    disk = Disk(library, root, tmp / f"shadow{seed}")
    disk.begin()
    env = {**os.environ, **disk.environment()}
    subprocess.run([sys.executable, "-S", "-c", program, str(root)], env=env, check=True)
    disk.cut(random.Random(seed))
    return root


def test_bytes_that_were_synced_are_there(library: Path, tmp_path: Path) -> None:
    for seed in range(SEEDS):
        root = after_cut(library, tmp_path, SAFE, seed)
        assert (root / "file").read_text() == "new" * 1000
        assert (root / "sub" / "log").read_text() == "one\n"
        shutil.rmtree(root)


def test_bytes_that_were_not_synced_may_be_lost_or_torn(library: Path, tmp_path: Path) -> None:
    found = set()
    for seed in range(SEEDS):
        root = after_cut(library, tmp_path, UNSAFE, seed)
        found.add((root / "file").read_bytes())
    assert b"old" in found  # the rename was lost
    assert any(0 in content or content == b"" for content in found)  # the content was
    assert b"new" * 1000 in found


def test_a_torn_file_is_of_the_old_and_the_new() -> None:
    old, new = b"o" * 2000, b"n" * 3000
    seen = {torn(old, new, random.Random(seed)) for seed in range(200)}
    assert {old, new} <= seen
    assert all(set(content) <= set(b"on\0") for content in seen)
