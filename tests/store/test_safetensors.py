"""Headers of safetensors files: as many tensors as models have are read, floods are refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from picoedge.errors import ModelError
from picoedge.store.safetensors import read_header


def write(path: Path, header: str) -> Path:
    data = header.encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data + bytes(8))
    return path


FLOODS = {
    "nested lists": "[" + "[[[[[[[[]]]]]]]]," * 200_000 + "0]",
    "texts": '{"__metadata__": [' + '"ab",' * 400_000 + '""]}',
    "objects": '{"__metadata__": [' + "{}," * 1_000_000 + "{}]}",
    "dimensions": '{"a": {"dtype": "F32", "shape": [' + "1," * 1_000_000 + "1]}}",
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_header_of_many_small_values_is_refused_in_little_memory(
    name: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.safetensors", FLOODS[name])
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as refused:
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size + (2 << 20)
    finally:
        tracemalloc.stop()
    assert refused.value.message == f"{path} holds more than 131072 values"


def test_a_header_of_sixteen_thousand_tensors_is_read(tmp_path: Path) -> None:
    header = {
        f"model.layers.{i}.block_sparse_moe.experts.{i}.w1.weight": {
            "dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8],
        }
        for i in range(16_000)
    }  # fmt: skip
    path = write(tmp_path / "m.safetensors", json.dumps(header))
    assert [entry.name for entry in read_header(path)] == list(header)


def test_a_header_larger_than_any_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", '{"__metadata__": {"a": "' + "a" * (4 << 20) + '"}}')
    with pytest.raises(ModelError, match=r"has 4194331 bytes, at most 4194304 are expected"):
        read_header(path)
