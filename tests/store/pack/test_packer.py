"""Packs: their size, the memory of packing, and their bytes."""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from store_models import EXACT, HIDDEN, random_rows, write_folder

from picoedge.config import ModelConfig
from picoedge.errors import ModelError, UsageError
from picoedge.kernels.blocks import FORMATS, MatrixSpec
from picoedge.store.encodings import ENCODINGS
from picoedge.store.pack.matrices import MatrixTarget, cut_columns, cut_rows
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.pack.sharding import MATRICES, SPAN_ALIGN, Geometry, PackLayout, shard_layout
from picoedge.store.sources.source import ModelSource, open_source
from picoedge.store.sources.tensors import SourceTensor, tensor_shapes


def test_shards_lie_in_page_aligned_runs_of_sound_safetensors_files(
    tmp_path: Path, source: ModelSource
) -> None:
    pack_source(source, tmp_path / "m.pico")
    for path in (tmp_path / "m.pico").glob("*.safetensors"):
        header = path.read_bytes()[8 : int.from_bytes(path.read_bytes()[:8], "little") + 8]
        data_start = 8 + len(header)
        assert data_start % SPAN_ALIGN == 0
        entries = {k: v for k, v in json.loads(header).items() if k != "__metadata__"}
        for kind in ("attention", "ffn", "head", "embed"):
            run = [e["data_offsets"] for k, e in entries.items() if k.startswith(f"{kind}.")]
            if run:
                assert run[0][0] % SPAN_ALIGN == 0
                assert len({end - start for start, end in run}) == 1
                assert all(a[1] == b[0] for a, b in pairwise(run))
        with safe_open(path, "numpy") as file:  # the library refuses holes and overlaps
            assert set(file.keys()) == set(entries)


def test_packing_twice_gives_the_same_bytes(tmp_path: Path, source: ModelSource) -> None:
    pack_source(source, tmp_path / "a" / "m.pico")
    pack_source(source, tmp_path / "b" / "m.pico")
    names = os.listdir(tmp_path / "a" / "m.pico")
    assert filecmp.cmpfiles(tmp_path / "a" / "m.pico", tmp_path / "b" / "m.pico", names,
                            shallow=False)[0] == names  # fmt: skip


LLAMA = {  # hidden, intermediate, layers, heads, key-value heads, head size, vocabulary, tied
    "TinyLlama 1.1B": (2048, 5632, 22, 32, 4, 64, 32000, False),
    "Llama 2 7B": (4096, 11008, 32, 32, 32, 128, 32000, False),
    "Llama 2 70B": (8192, 28672, 80, 64, 8, 128, 32000, False),
    "Llama 3.1 8B": (4096, 14336, 32, 32, 8, 128, 128256, False),
    "Llama 3.2 1B": (2048, 8192, 16, 32, 8, 64, 128256, True),
    "Qwen2.5 1.5B": (1536, 8960, 28, 12, 2, 128, 151936, True),
    "Qwen3 4B": (2560, 9728, 36, 32, 8, 128, 151936, True),
    "Gemma 3 4B": (2560, 10240, 34, 8, 4, 256, 262208, True),
    "small": (512, 1536, 4, 8, 4, 64, 8000, True),
}


@pytest.mark.parametrize("kind", [kind for kind in EXACT if kind != "Q3_K"])
@pytest.mark.parametrize("shape", LLAMA)
def test_a_pack_is_at_most_three_percent_larger_than_its_tensors(shape: str, kind: str) -> None:
    hidden, inner, layers, heads, kv_heads, head_dim, vocab, tied = LLAMA[shape]
    config = ModelConfig(
        "llama", hidden, inner, layers, heads, kv_heads, head_dim, vocab, 4096, 1e-5, 1e4,
        tie_word_embeddings=tied,
    )  # fmt: skip
    encoding, geometry = ENCODINGS[kind], Geometry.plan(config)
    attention, ffn, head = (
        shard_layout(kind, config, geometry, dict.fromkeys(names, encoding.format))
        for kind, names in MATRICES.items()
    )
    embed = 0 if tied else encoding.row_bytes(hidden)
    layout = PackLayout(config, geometry, (attention,) * layers, (ffn,) * layers, head, embed)
    sizes = tensor_shapes(config).values()
    source = sum(4 * r if c == 1 else r * encoding.row_bytes(c) for r, c in sizes)
    limit = 1.04 if shape == "small" else 1.03  # pages weigh more in a few megabytes
    assert 1 <= sum(file.nbytes for file in layout.files()) / source <= limit


def test_the_real_models_packs_are_no_larger(
    tmp_path: Path, smollm2_gguf: Path, gemma_gguf: Path
) -> None:
    for path in (smollm2_gguf, gemma_gguf):
        source = open_source(path)
        pack_source(source, tmp_path / "m.pico")
        opened = Pack.open(tmp_path / "m.pico")
        on_disk = sum(p.stat().st_size for p in (tmp_path / "m.pico").glob("*.safetensors"))
        assert opened.nbytes == on_disk
        assert on_disk / source.tensor_bytes < 1.005


@given(st.integers(1, 300_000))
def test_vocabulary_shards_cover_every_row_with_little_padding(vocab: int) -> None:
    config = ModelConfig("llama", 64, 64, 1, 1, 1, 64, vocab, 64, 1e-5, 1e4)
    geometry = Geometry.plan(config)
    rows = geometry.head_shards * geometry.head_shard_rows
    assert rows >= vocab
    assert geometry.head_shards <= 80
    assert vocab < 16 * 80 or rows <= 1.02 * vocab + 16


@pytest.mark.parametrize(
    ("inner", "width"), [(5632, 256), (896, 128), (192, 64), (96, 32), (100, 100)]
)
def test_ffn_shards_are_as_wide_as_divides(inner: int, width: int) -> None:
    config = ModelConfig("llama", 64, inner, 1, 1, 1, 64, 64, 64, 1e-5, 1e4)
    assert Geometry.plan(config).ffn_shard_cols == width


def raw_tensor(path: Path, kind: str, rows: int, cols: int) -> SourceTensor:
    random_rows(kind, rows, cols, seed=2).tofile(path)
    return SourceTensor("t", (rows, cols), ENCODINGS[kind], path, 0, path.stat().st_size)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q5_0"])
def test_rows_written_in_pieces_are_those_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    tensor = raw_tensor(tmp_path / "t", kind, 250, 512)
    fmt = FORMATS[ENCODINGS[kind].format]

    def packed(chunk_weights: int, columns: bool) -> bytes:
        monkeypatch.setattr("picoedge.store.pack.matrices._CHUNK_WEIGHTS", chunk_weights)
        rows, cols = (250, 128) if columns else (130, 512)
        spec = MatrixSpec(fmt, rows, cols, 64, min(cols, 256) if fmt.superblocks else 0)
        place = MatrixTarget(spec, 0, 64 + spec.nbytes, 4 if columns else 2)
        out = np.zeros(place.count * place.stride, np.uint8)

        def write(at: int, data: Any) -> None:
            out[at : at + len(data)] = data

        (cut_columns if columns else cut_rows)(tensor, place, write)
        return out.tobytes()

    for columns in (True, False):
        assert packed(1, columns) == packed(1 << 30, columns)


@pytest.mark.parametrize("kind", ["Q4_K", "F16"])
def test_the_widest_matrices_are_cut_in_little_memory(tmp_path: Path, kind: str) -> None:
    cols, shard = 28672, 256  # down of a 70B model; the number of rows does not matter
    path = tmp_path / "t"
    nbytes = 256 * ENCODINGS[kind].row_bytes(cols)
    with path.open("wb") as file:
        file.truncate(nbytes)
    tensor = SourceTensor("t", (256, cols), ENCODINGS[kind], path, 0, path.stat().st_size)
    fmt = FORMATS["q4k" if kind == "Q4_K" else "q8"]
    spec = MatrixSpec(fmt, 256, shard, 0, 256 if fmt.superblocks else 0)
    tracemalloc.start()
    try:
        cut_columns(
            tensor, MatrixTarget(spec, 0, spec.nbytes, cols // shard), lambda at, data: None
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 80 << 20


def test_packing_gemma_takes_little_memory(tmp_path: Path, gemma_gguf: Path) -> None:
    program = """
import sys
from pathlib import Path
from picoedge.store.pack.packer import pack_source
from picoedge.store.sources.source import open_source
pack_source(open_source(Path(sys.argv[1])), Path(sys.argv[2]))
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    command = [sys.executable, "-c", program, str(gemma_gguf), str(tmp_path / "m.pico")]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    assert int(out.split()[1]) < 150 * 1024


def test_progress_counts_up_to_the_packs_size(tmp_path: Path, source: ModelSource) -> None:
    seen: list[tuple[int, int]] = []
    pack_source(
        source, tmp_path / "m.pico", progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (Pack.open(tmp_path / "m.pico").nbytes,) * 2
    assert seen == sorted(seen)


def test_texts_are_listed_and_source_is_named(tmp_path: Path, source: ModelSource) -> None:
    def write_text(given: ModelSource, folder: Path) -> None:
        assert given is source
        (folder / "tokenizer.json").write_text("{}")

    pack_source(source, tmp_path / "m.pico", write_text=write_text)
    opened = Pack.open(tmp_path / "m.pico")
    assert (opened.name, opened.config) == ("m", source.config)
    assert opened.source["fingerprint"] == source.fingerprint
    assert (opened.source["kind"], opened.source["name"]) == ("gguf", "m")
    assert opened.source["file"] == "m.gguf"
    assert str(tmp_path) not in (tmp_path / "m.pico" / "picoedge.json").read_text()
    opened.verify()
    (tmp_path / "m.pico" / "tokenizer.json").write_text("[]")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        opened.verify()


def test_bits_are_checked(tmp_path: Path, source: ModelSource) -> None:
    with pytest.raises(UsageError, match="--bits 7"):
        pack_source(source, tmp_path / "m.pico", bits=7)


def test_weights_too_large_for_f16_scales_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    huge = np.full((512, HIDDEN), 1e30, np.float32)
    write_folder(tmp_path / "m", extra={name: huge})
    with pytest.raises(ModelError, match=r"up_proj\.weight holds weights too large"):
        pack_source(open_source(tmp_path / "m"), tmp_path / "m.pico", bits=4)
    pack_source(open_source(tmp_path / "m"), tmp_path / "m.pico", bits=32)
