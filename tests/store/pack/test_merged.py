"""Merging an adapter into a pack: what changes, what does not, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from adapters_material import NAMES, random_adapter
from random_models import packed_model
from store_models import write_gguf

from picoedge.errors import StorageError
from picoedge.store.pack.merged import MergeCost, merge_adapter
from picoedge.store.pack.pack_tensors import PackTensors
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import MANIFEST
from picoedge.store.sources.adapter_matrices import canonical_matrices
from picoedge.store.sources.source import open_source


def merged(pack: Pack, out: Path, names: tuple[str, ...] = NAMES, **how: int) -> MergeCost:
    matrices = canonical_matrices(random_adapter(pack.config, names), pack.config)
    return merge_adapter(pack, matrices, out, **how)


def table(pack: Path) -> dict[str, str]:
    """The hash of each shard."""
    shards = json.loads((pack / MANIFEST).read_text())["shards"]
    return {name: entry["blake2b"] for name, entry in shards.items()}


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K", "Q5_1", "Q6_K", "Q8_0", "F32"])
def test_an_adapter_of_nothing_copies_every_byte(tmp_path: Path, kind: str) -> None:
    write_gguf(tmp_path / "m.gguf", kind)
    pack_source(open_source(tmp_path / "m.gguf"), tmp_path / "m.pico", bits=8)
    merge_adapter(Pack.open(tmp_path / "m.pico"), {}, tmp_path / "copy.pico")
    assert table(tmp_path / "copy.pico") == table(tmp_path / "m.pico")


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
def test_only_what_is_adapted_changes(tmp_path: Path, kind: str) -> None:
    write_gguf(tmp_path / "m.gguf", kind)
    pack_source(open_source(tmp_path / "m.gguf"), tmp_path / "m.pico")
    pack = Pack.open(tmp_path / "m.pico")
    cost = merged(pack, tmp_path / "new.pico", ("down_proj",))
    before, after = table(pack.path), table(tmp_path / "new.pico")
    changed = {name for name in before if before[name] != after[name]}
    assert changed
    assert all("/ffn." in name for name in changed)
    assert list(cost) == ["down"]
    formats = Pack.open(tmp_path / "new.pico").shard("ffn", 0).matrices
    assert formats["gate"].format.name == pack.shard("ffn", 0).matrices["gate"].format.name
    assert not formats["down"].format.superblocks


def test_f32_weights_are_merged_exactly(tmp_path: Path) -> None:
    pack = packed_model("llama", tmp_path, 32)
    matrices = canonical_matrices(random_adapter(pack.config), pack.config)
    cost = merge_adapter(pack, matrices, tmp_path / "new.pico")
    new = Pack.open(tmp_path / "new.pico")
    before, values = (PackTensors(p).matrix("layers.1.gate").floats(0, 160) for p in (pack, new))
    added = matrices[1, "gate"].delta
    np.testing.assert_allclose(values, before + added, rtol=1e-6, atol=1e-7)
    assert set(cost) == {"q", "k", "v", "o", "gate", "up", "down"}
    for powers in cost.values():
        assert powers.relative_error == 0
        assert 0.1 < powers.relative_added < 1


def test_bits_are_those_asked_for_and_cost_what_they_cost(tmp_path: Path) -> None:
    pack = packed_model("llama", tmp_path, 8, blocks=True)
    costs = {bits: merged(pack, tmp_path / f"{bits}.pico", bits=bits) for bits in (4, 8)}
    packs = {bits: Pack.open(tmp_path / f"{bits}.pico") for bits in (4, 8)}
    assert packs[4].nbytes < 0.7 * packs[8].nbytes
    assert packs[4].head().spec.format.bits == 4
    assert 0.02 < costs[4]["down"].relative_error < 0.2
    assert costs[8]["down"].relative_error < 0.01


def test_nothing_is_left_where_the_target_is_no_pack(tmp_path: Path) -> None:
    pack = packed_model("llama", tmp_path, 8)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(StorageError, match="is not a pack"):
        merged(pack, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "m.pico", "out"]
