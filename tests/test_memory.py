"""What a model takes and what a board has, before anything is allocated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny

from picoedge.config import ModelConfig
from picoedge.engine.memory import (
    INTERPRETER_BYTES,
    Estimate,
    available_bytes,
    check_budget,
    default_context,
    estimate,
)
from picoedge.engine.process import peak_rss_bytes, storage_bytes_read
from picoedge.errors import MemoryBudgetError
from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.store.pack import pack
from picoedge.store.reader import Pack
from picoedge.store.sources import open_source

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


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("n_ctx", [64, 512])
def test_the_estimate_is_not_below_what_is_taken(tmp_path: Path, bits: int, n_ctx: int) -> None:
    pack(open_source(tiny.write_tiny_model(tmp_path / "tiny")), tmp_path / "t.pico", bits=bits)
    opened = Pack.open(tmp_path / "t.pico")
    model = Transformer(opened, load_kernels(None, 1), n_ctx)
    taken = model.memory_bytes()
    model.close()
    need = estimate(opened.config, opened.nbytes, n_ctx, kv_bits=32 if bits == 32 else 16)
    assert need.weights == taken["weights"]
    assert taken["kv_cache"] <= need.kv_cache <= 1.5 * taken["kv_cache"]
    assert taken["activations"] <= need.activations <= 3 * taken["activations"]


def test_the_cache_of_a_known_model() -> None:
    # 32 layers x 8 heads x 128 x 2 (k, v) x 2 bytes: 128 KB a token, and the angles beside it
    need = estimate(LLAMA_8B, 5 << 30, 8192)
    assert need.kv_cache == 8192 * (131072 + 2 * 4 * 64)
    assert need.total == need.weights + need.kv_cache + need.activations + need.fixed


def test_a_larger_vocabulary_takes_more_and_sentencepiece_less() -> None:
    small = dataclasses.replace(LLAMA_8B, vocab_size=49152)
    large = dataclasses.replace(LLAMA_8B, vocab_size=262144)
    assert estimate(small, 0, 512).fixed == pytest.approx(70 * MB, rel=0.02)
    counted = estimate(large, 0, 512, sentencepiece=True)
    assert counted.fixed == pytest.approx(INTERPRETER_BYTES + 65 * MB, rel=0.02)
    assert counted.total == counted.private + counted.fixed
    assert estimate(large, 0, 512).fixed > counted.fixed


def test_a_default_context_is_modest() -> None:
    assert default_context(LLAMA_8B, 5 << 30, 1 << 40) == 4096


def test_a_default_context_shrinks_to_what_fits() -> None:
    weights = 5 << 30
    for expected in (2048, 1024):
        budget = estimate(LLAMA_8B, weights, expected).total
        assert default_context(LLAMA_8B, weights, budget) == expected
    assert default_context(LLAMA_8B, weights, 0) == 512


def test_a_budget_counts_everything() -> None:
    need = Estimate(weights=100 * MB, kv_cache=20 * MB, activations=10 * MB, n_ctx=4096)
    check_budget(need, need.total, 1 << 40)
    with pytest.raises(MemoryBudgetError) as caught:
        check_budget(need, need.total - 1, 1 << 40)
    for figure in ("weights 100 MB", "4096 tokens 20 MB", "buffers 10 MB", "= 178 MB"):
        assert figure in caught.value.message


def test_weights_may_exceed_free_memory_but_a_context_may_not() -> None:
    need = Estimate(weights=1000 * MB, kv_cache=20 * MB, activations=10 * MB, n_ctx=4096)
    check_budget(need, None, 30 * MB)
    with pytest.raises(MemoryBudgetError, match="4096 tokens needs 30 MB, 29 MB of memory is free"):
        check_budget(need, None, 29 * MB)


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
    assert peak_rss_bytes() > 20 * MB
    assert available_bytes() > 0


def test_where_the_system_does_not_count(tmp_path: Path) -> None:
    assert storage_bytes_read(tmp_path / "none") is None
    assert peak_rss_bytes(tmp_path / "none") > 20 * MB


def test_bytes_read_are_those_from_storage(tmp_path: Path) -> None:
    (tmp_path / "io").write_text("rchar: 9\nread_bytes: 4096\ncancelled_write_bytes: 0\n")
    assert storage_bytes_read(tmp_path / "io") == 4096
