"""Rows of an embedding read from the file are the rows of the mapped one; failures have a place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_model

from picoedge.errors import StorageError
from picoedge.kernels.blocks import RowGather, Weights
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import open_source


def rows_of(opened: Pack, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    read, mapped = np.zeros((2, len(ids), opened.config.hidden_size), np.float32)
    opened.row_reader().gather(ids, read)
    embedding = opened.embedding
    table = RowGather(embedding) if isinstance(embedding, Weights) else embedding
    table.gather(ids, mapped)
    return read, mapped


def ids_of(opened: Pack) -> list[int]:
    vocab = opened.config.vocab_size
    return [0, 1, 15, 16, 17, vocab // 2, vocab - 2, vocab - 1, 5, 5]


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_untied_rows(tmp_path: Path, bits: int) -> None:
    pack_source(
        open_source(tiny_model.write_tiny_model(tmp_path / "tiny")), tmp_path / "t.pico", bits=bits
    )
    opened = Pack.open(tmp_path / "t.pico")
    assert not opened.config.tie_word_embeddings
    np.testing.assert_array_equal(*rows_of(opened, ids_of(opened)))


def test_rows_of_a_tied_head(smollm2_pack: Path, gemma_pack: Path) -> None:
    for path in (smollm2_pack, gemma_pack):
        opened = Pack.open(path)
        assert opened.config.tie_word_embeddings
        np.testing.assert_array_equal(*rows_of(opened, ids_of(opened)))


def test_a_row_beyond_the_end_of_a_cut_file_is_an_error_with_a_place(tmp_path: Path) -> None:
    pack_source(
        open_source(tiny_model.write_tiny_model(tmp_path / "tiny")), tmp_path / "t.pico", bits=8
    )
    opened = Pack.open(tmp_path / "t.pico")
    file = tmp_path / "t.pico" / "embed.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    out = np.zeros((1, opened.config.hidden_size), np.float32)
    with pytest.raises(StorageError, match=r"shard embed/embed\.\d+, byte \d+: the file ends"):
        opened.row_reader().gather([opened.config.vocab_size - 1], out)
