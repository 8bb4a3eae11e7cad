"""What a model takes and what a board has, before anything is allocated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny_model

from picoedge.config import ModelConfig
from picoedge.engine import fit
from picoedge.engine.fit import (
    budget_bytes,
    bytes_apart,
    fits_resident,
    load_of,
    resident_plan,
)
from picoedge.engine.options import OpenOptions
from picoedge.host import resources
from picoedge.host.resources import available_bytes, peak_rss_bytes, rss_bytes, storage_bytes_read
from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.planner.memory import Budget, Load, cache_bytes, default_context
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Slice
from picoedge.store.sources.source import open_source
from picoedge.store.window.plan import Rates

MB = 1 << 20
LLAMA_8B = ModelConfig(
    architecture="llama",
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
)


@pytest.fixture(scope="module", params=[8, 32])
def pack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The tiny model, quantized and in f32."""
    folder = tmp_path_factory.mktemp("memory")
    tiny_model.write_tiny_model(folder / "tiny")
    pack_source(open_source(folder / "tiny"), folder / "tiny.pico", bits=request.param)
    return Pack.open(folder / "tiny.pico")


@pytest.mark.parametrize("n_ctx", [64, 512])
def test_a_plan_of_the_whole_is_not_below_what_is_taken(pack: Pack, n_ctx: int) -> None:
    load = load_of(pack, pack.all_shards, OpenOptions(n_ctx=n_ctx))
    plan = resident_plan(load, Budget(1 << 40, 0), Rates(1, 1))
    model = Transformer(pack, load_kernels(None, 1), n_ctx)
    taken = model.memory_bytes()
    model.close()
    assert load.kv_bits == (32 if pack.head().spec.format.bits == 32 else 16)
    assert plan.window.touched_bytes + bytes_apart(pack) == taken["weights"]
    assert taken["kv_cache"] <= plan.kv_cache <= 1.5 * taken["kv_cache"]
    assert taken["activations"] <= plan.activations <= 3 * taken["activations"]


def test_a_model_that_fits_to_the_byte_is_held_whole(pack: Pack) -> None:
    load = load_of(pack, pack.all_shards, OpenOptions(n_ctx=64))
    fixed = 50 * MB
    need = resident_plan(load, Budget(1 << 40, fixed), Rates(1, 1)).total + bytes_apart(pack)
    assert fits_resident(pack, load, Budget(need, fixed))
    assert not fits_resident(pack, load, Budget(need - 1, fixed))
    assert not fits_resident(pack, load, Budget(need, fixed + 1))


def test_the_cache_of_a_known_model() -> None:
    # 32 layers x 8 heads x 128 x 2 (k, v) x 2 bytes: 128 KB a token, and the angles beside it
    part = Slice(range(8), range(0))
    load = Load(LLAMA_8B, part, (), 256, 8192, 16)
    assert cache_bytes(load) == 8192 * (131072 + 2 * 4 * 64)
    assert cache_bytes(dataclasses.replace(load, kv_bits=8)) < 0.6 * cache_bytes(load)
    eighth = dataclasses.replace(load, part=Slice(range(1), range(0)))
    assert cache_bytes(eighth) == 8192 * (131072 // 8 + 2 * 4 * 64)


def test_a_default_context_is_modest() -> None:
    assert default_context(LLAMA_8B, 1 << 40) == 4096
    assert default_context(dataclasses.replace(LLAMA_8B, max_position_embeddings=512), 1 << 40) == (
        512
    )


def test_a_default_context_takes_a_quarter_of_the_memory() -> None:
    for expected in (4096, 2048, 1024):
        load = Load(LLAMA_8B, Slice(range(8), range(0)), (), 256, expected, 16)
        budget = 4 * cache_bytes(load)
        assert default_context(LLAMA_8B, budget) == expected
        assert default_context(LLAMA_8B, budget - 4) == expected // 2
    assert default_context(LLAMA_8B, 0) == 512
    assert default_context(LLAMA_8B, 600 * MB, kv_bits=8) > default_context(LLAMA_8B, 600 * MB)


def test_the_budget_is_what_is_there_and_at_most_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resources, "available_bytes", lambda: 1600 * MB)
    monkeypatch.setattr(fit, "lasting_bytes", lambda: 50 * MB)
    assert budget_bytes(None) == 1550 * MB  # a sixteenth is left to others
    assert budget_bytes(400 * MB) == 400 * MB
    assert budget_bytes(4000 * MB) == 1650 * MB


def board(tmp_path: Path, groups: str, files: dict[str, str], available_mb: int = 1000) -> int:
    """What `available_bytes` says of a board with these files."""
    (tmp_path / "meminfo").write_text(
        f"MemTotal: 9 kB\nMemAvailable: {available_mb * 1024} kB\nHugePages_Total: 0\n"
    )
    (tmp_path / "groups").write_text(groups)
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return available_bytes(root, tmp_path / "groups", tmp_path / "meminfo")


def test_without_cgroups_the_system_s_memory_counts(tmp_path: Path) -> None:
    assert board(tmp_path, "", {}) == 1000 * MB


def test_cgroup_v2_limits_and_its_page_cache_is_given_back(tmp_path: Path) -> None:
    files = {
        "user/app/memory.max": f"{400 * MB}\n",
        "user/app/memory.current": f"{300 * MB}\n",
        "user/app/memory.stat": f"anon 1\ninactive_file {100 * MB}\nactive_file {50 * MB}\n",
    }
    assert board(tmp_path, "0::/user/app\n", files) == 250 * MB


def test_cgroup_v2_without_a_limit(tmp_path: Path) -> None:
    files = {"a/memory.max": "max\n", "a/memory.current": "5\n"}
    assert board(tmp_path, "0::/a\n", files) == 1000 * MB


def test_a_parent_s_limit_counts_too(tmp_path: Path) -> None:
    files = {"a/b/memory.max": "max\n", "a/memory.max": f"{64 * MB}", "a/memory.current": "0"}
    assert board(tmp_path, "0::/a/b\n", files) == 64 * MB


def test_inside_a_container_the_root_is_the_own_group(tmp_path: Path) -> None:
    files = {"memory.max": f"{64 * MB}", "memory.current": "0"}
    assert board(tmp_path, "0::/docker/0123\n", files) == 64 * MB


def test_cgroup_v1(tmp_path: Path) -> None:
    files = {
        "memory/app/memory.limit_in_bytes": f"{400 * MB}\n",
        "memory/app/memory.usage_in_bytes": f"{300 * MB}\n",
        "memory/app/memory.stat": f"inactive_file 7\ntotal_inactive_file {100 * MB}\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert board(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/app\n0::/\n", files) == 200 * MB


def test_used_beyond_the_limit_is_nothing_left(tmp_path: Path) -> None:
    files = {"memory.max": "100", "memory.current": "200"}
    assert board(tmp_path, "0::/\n", files) == 0


def test_this_process_is_counted() -> None:
    assert 10 * MB < rss_bytes() <= peak_rss_bytes()
    assert available_bytes() > 0


def test_where_the_system_does_not_count(tmp_path: Path) -> None:
    assert storage_bytes_read(tmp_path / "none") is None
    assert peak_rss_bytes(tmp_path / "none") > 20 * MB


def test_bytes_read_are_those_from_storage(tmp_path: Path) -> None:
    (tmp_path / "io").write_text("rchar: 9\nread_bytes: 4096\ncancelled_write_bytes: 0\n")
    assert storage_bytes_read(tmp_path / "io") == 4096
