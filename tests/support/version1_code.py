"""The code of wire version 1, from the repository's own history."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

COMMIT = "a8b77f2"  # the last of version 1
ROOT = Path(__file__).parents[2]


def unpack_version1(folder: Path) -> Path:
    """Unpack `picoedge` of COMMIT into `folder`, which is returned: a PYTHONPATH."""
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "cat-file", "-e", COMMIT], capture_output=True).returncode:
        pytest.fail(f"commit {COMMIT} is not in this repository (git fetch --unshallow)")
    archive = subprocess.run([*git, "archive", COMMIT, "picoedge"], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder)  # of our own repository
    return folder
