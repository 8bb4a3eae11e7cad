"""`python -m hw.lab.cluster`, as the README has it: boards that are formed into a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import shelf_models

from picoedge.registry.packing import pack_model

ROOT = Path(__file__).parents[2]
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # the environment is not activated
LAB = [sys.executable, "-m", "hw.lab.cluster", "--boards", "2", "--memory", "300M"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    shelf_models.write_folder(folder / "tiny")
    pack_model(folder / "tiny", folder / "tiny.pico", bits=8)
    return folder / "tiny.pico"


def lab(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAB, *map(str, words)], cwd=ROOT, env={**os.environ, "PATH": SYSTEM_PATH},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_every_board_is_in_and_only_the_first_has_the_model(pack: Path) -> None:
    shown = "picoedge ps; ls $PICOEDGE_HOME/models $PICOEDGE_HOME/../board2/models 2>&1"
    done = lab("--model", pack, "--", "sh", "-c", f"{shown}; exit 7")
    assert done.returncode == 7, done.stderr
    first, _, *rows = done.stdout.splitlines()
    assert first == "cluster lab: 2 boards"
    assert [row.split()[:2] for row in rows[:2]] == [["board1", "alive"], ["board2", "alive"]]
    assert done.stdout.count("tiny.pico") == 1


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    done = lab("--model", tmp_path / "none.pico")
    assert done.returncode == 1
    assert done.stderr.startswith("cluster: ")
    assert "Traceback" not in done.stderr
