"""A cluster of one board."""

from __future__ import annotations

from pathlib import Path

import pytest

from picoedge.mesh.identity.admission import found_cluster


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of the board that made a cluster."""
    found_cluster(tmp_path / "home", "home", "pi0")
    return tmp_path / "home"
