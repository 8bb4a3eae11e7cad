"""Storage with faults, to be preloaded under a program: see faulty_storage.c."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def native() -> str:
    """A C compiler, without which there are neither faults nor C kernels."""
    return next(filter(shutil.which, ("cc", "gcc", "clang")))


@pytest.fixture(scope="module")
def shim(native: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to be preloaded."""
    library = tmp_path_factory.mktemp("shim") / "faulty_storage.so"
    source = Path(__file__).with_name("faulty_storage.c")
    command = [native, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library
