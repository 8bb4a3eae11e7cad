"""Files on a disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from disk_files import MB


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
