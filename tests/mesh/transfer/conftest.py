"""A shelf with a sound pack, and a place for another."""

from __future__ import annotations

from pathlib import Path

import pytest
from packed_source import write_text
from store_models import write_gguf

from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import open_source


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    write_gguf(folder / "m.gguf", "Q8_0", tied=False)
    pack_source(open_source(folder / "m.gguf"), folder / "m.pico", write_text=write_text)
    return folder


@pytest.fixture(scope="module")
def sound(shelf: Path) -> Pack:
    return Pack.open(shelf / "m.pico")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "mine" / "m.pico"
