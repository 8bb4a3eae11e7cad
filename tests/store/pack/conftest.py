"""A small model to be packed."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_models import write_gguf

from picoedge.store.sources.source import ModelSource, open_source


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    write_gguf(tmp_path / "m.gguf", "Q4_0", tied=False)
    return open_source(tmp_path / "m.gguf")
