"""Packs in f32 packed again: the same bytes in 32 bits, and fewer of them in 4."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_models import write_gguf

from picoedge.errors import ModelError
from picoedge.registry.packing import open_any_source, pack_model
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.pack.repack import PackSource
from picoedge.store.sources.source import open_source


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("bits", [32, 4])
def test_a_pack_in_f32_is_packed_as_its_source_would_be(
    tmp_path: Path, architecture: str, tied: bool, bits: int
) -> None:
    write_gguf(tmp_path / "m.gguf", architecture=architecture, tied=tied)
    source = open_source(tmp_path / "m.gguf")
    pack_source(source, tmp_path / "f32.pico", bits=32)
    pack_source(source, tmp_path / "wanted.pico", bits=bits)
    pack_source(open_any_source(tmp_path / "f32.pico"), tmp_path / "again.pico", bits=bits)
    names = sorted(path.name for path in (tmp_path / "wanted.pico").glob("*.safetensors"))
    assert names
    for name in names:
        wanted, again = (tmp_path / f"{pack}.pico" / name for pack in ("wanted", "again"))
        assert again.read_bytes() == wanted.read_bytes(), name
    Pack.open(tmp_path / "again.pico").verify()


def test_a_quantized_pack_is_not_packed_again(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    pack_source(open_source(tmp_path / "m.gguf"), tmp_path / "q.pico", bits=8)
    with pytest.raises(ModelError, match="is already packed"):
        PackSource(Pack.open(tmp_path / "q.pico"))
    with pytest.raises(ModelError, match="is already packed"):
        pack_model(tmp_path / "q.pico", tmp_path / "out.pico", bits=4)
    assert not (tmp_path / "out.pico").exists()
