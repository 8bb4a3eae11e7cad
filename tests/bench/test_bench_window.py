"""The window's benches: controllers' files, arithmetic of rows, models of random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import limits, paced, seventy_b, window, window_budget, window_models, window_rates
from bench import random_pack as packs
from bench.__main__ import main as bench_main
from bench.children import BenchError
from bench.limits import Cage, Counter, Hierarchy, Limits, LimitsError
from bench.paced import Paced
from bench.random_gguf import write_gguf
from bench.random_models import TINYLLAMA, Shape, tokenizer_metadata
from bench.random_offload import write_offload
from bench.window_models import WindowModels, layers_of
from bench.window_speed import MB, ratio
from picoedge.errors import ModelError
from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.registry.packing import pack_model
from picoedge.store.pack.reader import Pack
from picoedge.text.export.export import write_from_gguf
from picoedge.text.tokenizer.load import load_tokenizer

TINY = Shape(256, 512, 2, 4, 2, 512, 128)

IO_V1 = """254:0 Read 1048576
254:0 Write 4096
254:0 Total 1052672
8:16 Read 77
Total 1052749
"""
IO_V2 = """8:16 rbytes=77 wbytes=0 rios=1 wios=0 dbytes=0 dios=0
254:0 rbytes=1048576 wbytes=4096 rios=9 wios=1 dbytes=0 dios=0
"""


# -- limits ------------------------------------------------------------------------------------


def test_bytes_are_read_from_the_controllers_files() -> None:
    assert limits.read_bytes_v1(IO_V1, "254:0") == 1048576
    assert limits.read_bytes_v2(IO_V2, "254:0") == 1048576
    for nothing_yet in ("", "Total 0\n"):
        assert limits.read_bytes_v1(nothing_yet, "254:0") == 0
        assert limits.read_bytes_v2(nothing_yet, "254:0") == 0


@pytest.mark.parametrize(("version", "text"), [(1, IO_V1), (2, IO_V2)])
def test_a_counter_reads_its_own_device(tmp_path: Path, version: int, text: str) -> None:
    (tmp_path / "file").write_text(text)
    assert Counter(version, str(tmp_path / "file"), "8:16").read() == 77


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def own_groups(tmp_path: Path, text: str) -> Path:
    (tmp_path / "own").write_text(text)
    return tmp_path / "own"


@pytest.mark.usefixtures("as_root")
def test_version_1_makes_groups_beneath_its_own(tmp_path: Path) -> None:
    own = own_groups(tmp_path, "9:name=systemd:/\n7:blkio:/\n4:memory:/a/b\n0::/\n")
    found = limits.hierarchy(tmp_path, own)
    assert found == Hierarchy(1, tmp_path / "memory/a/b", tmp_path / "blkio")


@pytest.mark.usefixtures("as_root")
def test_version_2_makes_its_group_where_children_have_both_controllers(tmp_path: Path) -> None:
    own = own_groups(tmp_path, "0::/user.slice/session\n")
    (tmp_path / "user.slice/session").mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu io memory\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    assert limits.hierarchy(tmp_path, own).memory == tmp_path
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +io"
    (tmp_path / "user.slice/cgroup.subtree_control").write_text("io memory\n")
    assert limits.hierarchy(tmp_path, own) == Hierarchy(2, *[tmp_path / "user.slice"] * 2)


@pytest.mark.usefixtures("as_root")
def test_missing_controllers_are_named(tmp_path: Path) -> None:
    with pytest.raises(LimitsError, match="no memory and block-I/O controllers"):
        limits.hierarchy(tmp_path, own_groups(tmp_path, "7:blkio:/\n"))
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    with pytest.raises(LimitsError, match="no memory and io controllers"):
        limits.hierarchy(tmp_path, own_groups(tmp_path, "0::/\n"))


def test_limits_need_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LimitsError, match="root"):
        limits.hierarchy()


def group_files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_limits_are_written_before_a_child_joins(tmp_path: Path) -> None:
    for name in ("memory", "io"):
        (tmp_path / name).mkdir()
    cage = Cage(Hierarchy(1, tmp_path / "memory", tmp_path / "io"), "254:0", Limits(4096, 500))
    cage.make()
    memory, io = cage.folders
    assert group_files(memory) == {"memory.limit_in_bytes": "4096", "memory.swappiness": "0"}
    assert group_files(io) == {"blkio.throttle.read_bps_device": "254:0 500"}
    done = subprocess.run(cage.command(["/bin/echo", "a b"]), capture_output=True, check=True)
    assert done.stdout == b"a b\n"
    assert group_files(memory)["cgroup.procs"] == group_files(io)["cgroup.procs"]
    (memory / "memory.max_usage_in_bytes").write_text("8192\n")
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert (cage.peak_bytes(), cage.was_killed()) == (8192, True)


def test_version_2_limits_one_group(tmp_path: Path) -> None:
    cage = Cage(Hierarchy(2, tmp_path, tmp_path), "254:0", Limits(4096, 500))
    cage.make()
    (group,) = cage.folders
    assert group_files(group) == {"memory.max": "4096", "io.max": "254:0 rbps=500"}
    with pytest.raises(LimitsError, match=r"memory\.peak"):
        cage.peak_bytes()
    (group / "memory.events").write_text("oom 0\noom_kill 0\n")
    assert not cage.was_killed()


def test_groups_are_removed_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "hierarchy", lambda: Hierarchy(2, tmp_path, tmp_path))
    monkeypatch.setattr(limits, "disk_of", lambda folder: "254:0")
    monkeypatch.setattr(limits, "drop_caches", lambda: None)

    def burn() -> None:
        with limits.caged(tmp_path, Limits()) as cage:
            assert cage.folders[0].is_dir()
            raise BenchError("the disk is on fire")

    with pytest.raises(BenchError, match="on fire"):
        burn()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["window", "seventy_b"])
def test_without_limits_nothing_is_measured(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    @contextmanager
    def caged(folder: Path, limit: Limits) -> Iterator[None]:
        raise LimitsError("limits need root")
        yield

    monkeypatch.setattr(window_models.limits, "caged", caged)
    monkeypatch.setattr(window, "TARGETS", {k: v for k, v in window.TARGETS.items() if not v.needs})
    assert bench_main([name, "--json", "--models", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "limits need root" in err


# -- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bench", [window, seventy_b])
def test_every_row_has_a_target_and_one_measurement(bench: Any) -> None:
    assert sorted(name for names, _ in bench.GROUPS for name in names) == sorted(bench.TARGETS)


def run_of(s_per_token: float = 1.0, bytes_read: int = 0, **plan: float) -> Paced:
    report = {"plan": plan, "tokens": [1]}
    return Paced(s_per_token, bytes_read, 500, 9.0, 640e6, report)


def test_a_ratio_is_theirs_over_ours() -> None:
    row = ratio("r", [run_of(2.0), run_of(1.0)], [run_of(3.0), run_of(6.0)], "peer")
    assert (row.value, row.runs) == (3.0, (1.5, 6.0))
    assert "peer 4.500 (and 640 MB read a token)" in row.note
    assert json.loads(json.dumps(row.raw))["peer"][1]["s_per_token"] == 6.0


def test_memory_that_is_short_is_neither_model_nor_cache() -> None:
    plan = {"budget_mb": 400.0, "kv_cache_mb": 6.0, "activations_mb": 4.0, "resident_mb": 320.0}
    assert window_budget.short_mb(plan) == 70


def test_bytes_of_decoding_are_those_of_many_tokens_less_those_of_few() -> None:
    plan = {"touched_bytes_per_token": 700 << 20, "resident_mb": 400.0}
    few, many = run_of(bytes_read=5 << 30), run_of(bytes_read=(5 << 30) + 8 * (306 << 20), **plan)
    assert window_budget._read_ratio(few, many) == pytest.approx(1.02)


def test_the_plan_error_is_the_one_farthest_from_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = WindowModels(tmp_path)
    monkeypatch.setattr(WindowModels, "tensor_bytes", 1000 * MB)
    models.runs = {
        Limits(600 * MB, 500 * MB): [run_of(1.0, predicted_s_per_token=1.1)],
        Limits(250 * MB, 500 * MB): [run_of(1.0, predicted_s_per_token=0.8)],
        Limits(400 * MB, 500 * MB): [run_of(1.0, predicted_s_per_token=9.0)],  # of another row
    }
    (row,) = window_budget.plan_error(models, 1)
    assert row.value == 0.8
    assert sorted(row.runs) == [0.8, 1.1]


def test_streaming_is_held_against_the_fastest_way_of_reading() -> None:
    taken = {"picoedge": [90.0, 80.0], "dd a": [100.0, 100.0], "dd b": [300.0, 20.0]}
    row = window_rates.against_best("stream_rate", taken)
    assert row.value == pytest.approx(85 / 160)
    assert row.runs == pytest.approx((0.3, 4.0))
    assert window_rates.streamed(run_of(0.5, streamed_bytes_per_token=100)) == 200


def test_the_clock_is_the_disk_at_its_pace() -> None:
    assert seventy_b.against_clock(run_of(2.2, streamed_bytes_per_token=10**9)) == 1.1
    with pytest.raises(BenchError, match="nothing was streamed"):
        seventy_b.against_clock(run_of(streamed_bytes_per_token=0))
    assert seventy_b.layers_note(Path("llama70b-033.pico")) == "33 of 80 layers"


def test_a_note_says_how_the_context_was_filled() -> None:
    note = seventy_b.filled_note({"prompt_tokens": 32, "seconds": [1.0, 2.0, 3.0]})
    assert "32 tokens of prompt and 3 tokens decoded" in note


def test_the_pack_with_most_layers_is_used_again(tmp_path: Path) -> None:
    for name in ("llama70b-080.pico", "llama70b-100.pico", "llama70b-9.pico"):
        (tmp_path / name).mkdir()
    found = WindowModels(tmp_path).seventy_b()
    assert (found.name, layers_of(found)) == ("llama70b-100.pico", 100)


class Uncaged:
    """Where a child runs without limits."""

    def command(self, command: Sequence[str]) -> list[str]:
        return list(command)


@contextmanager
def uncaged(folder: Path, limit: Limits) -> Iterator[Uncaged]:
    yield Uncaged()


def test_dd_is_timed_without_its_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "caged", uncaged)
    began, files = time.perf_counter(), [tmp_path / "a b", tmp_path / "c"]
    for file in files:
        file.write_bytes(bytes(1 << 20))
    rate = paced.dd_rate(files, Limits(), block="1M", direct=False)
    assert rate > (2 << 20) / (time.perf_counter() - began)
    with pytest.raises(BenchError):
        paced.dd_rate([*files, tmp_path], Limits(), block="1M", direct=False)


def test_the_budget_is_kept_with_a_full_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Limits, int, str]] = []

    def ours(pack: Path, limit: Limits, n: int, *extra: str, prompt: str) -> Paced:
        asked.append((limit, n, prompt))
        budget = int(extra[extra.index("--memory") + 1])
        report = {"prompt_tokens": 231}
        return Paced(1.0, 0, budget if budget > 500 * MB else budget * 3 // 4, 9.0, None, report)

    monkeypatch.setattr(WindowModels, "tensor_bytes", 1000 * MB)
    monkeypatch.setattr(WindowModels, "pack", lambda self: tmp_path)
    monkeypatch.setattr(WindowModels, "slice_of_70b", lambda self, layers: tmp_path / "slice")
    monkeypatch.setattr(paced, "ours", ours)
    (row,) = window_budget.kept(WindowModels(tmp_path), 1)
    assert (row.value, row.runs) == (1.0, (1.0, 0.75, 0.75))
    assert asked[0] == (Limits(1200 * MB, None), window_budget.KEPT_TOKENS, paced.LONG_PROMPT)
    assert "231 tokens of prompt" in row.note


def test_the_long_prompt_nearly_fills_the_context(tmp_path: Path) -> None:
    write_from_gguf(tokenizer_metadata(TINYLLAMA.vocab_size), tmp_path)
    tokens = len(load_tokenizer(tmp_path).encode(paced.LONG_PROMPT))
    assert 0.95 * paced.N_CTX < tokens + window_budget.KEPT_TOKENS <= paced.N_CTX


# -- random models -----------------------------------------------------------------------------


def one_token(pack: Path) -> np.ndarray:
    model = Transformer(Pack.open(pack), load_kernels("numpy", 1), 32)
    return model.forward([5, 300, 7], 0).copy()


def test_a_random_pack_is_whole_and_runs(tmp_path: Path) -> None:
    packs.write_pack(tmp_path / "m.pico", TINY)
    pack = Pack.open(tmp_path / "m.pico")
    pack.verify()
    assert (pack.config.num_hidden_layers, pack.mapped("attention", 0)["q"].spec.format.name) == (
        2,
        "q4",
    )
    logits = one_token(tmp_path / "m.pico")
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1
    assert load_tokenizer(tmp_path / "m.pico").vocab_size == TINY.vocab_size
    with (tmp_path / "m.pico/layer-001.safetensors").open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-40, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with pytest.raises(ModelError, match="layer-001"):
        Pack.open(tmp_path / "m.pico").verify()


def test_a_random_pack_has_as_many_layers_as_asked_or_as_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs.write_pack(tmp_path / "m.pico", TINY, layers=3)
    pack = Pack.open(tmp_path / "m.pico")
    assert pack.config.num_hidden_layers == 3
    each = sum(f.nbytes for f in packs.layout_of(TINY, 2).files())
    each -= sum(f.nbytes for f in packs.layout_of(TINY, 1).files())

    def disk(free: int) -> None:
        usage = type("Usage", (), {"free": free + packs.SPARE_BYTES})
        monkeypatch.setattr(packs.shutil, "disk_usage", lambda folder: usage)

    disk(10**12)
    assert packs.layers_that_fit(TINY, tmp_path) == 2
    disk(pack.nbytes - each - 1)
    assert packs.layers_that_fit(TINY, tmp_path) == 1
    disk(0)
    with pytest.raises(BenchError, match="no room"):
        packs.layers_that_fit(TINY, tmp_path)


def test_a_random_gguf_packs_and_runs(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", TINY)
    pack_model(tmp_path / "m.gguf", tmp_path / "m.pico")
    pack = Pack.open(tmp_path / "m.pico")
    assert {w.spec.format.name for w in pack.mapped("ffn", 1).values()} == {"q4m"}
    assert np.isfinite(one_token(tmp_path / "m.pico")).all()
    tokenizer = load_tokenizer(tmp_path / "m.pico")
    ids = tokenizer.encode(paced.PROMPT)
    assert 5 < len(ids) <= len(paced.PROMPT) + 2
    assert max(ids) < TINY.vocab_size


def test_an_offload_folder_has_a_file_for_each_tensor(tmp_path: Path) -> None:
    write_offload(tmp_path / "off", TINY)
    index = json.loads((tmp_path / "off/index.json").read_text())
    assert len(index) == 9 * TINY.num_hidden_layers + 3
    for name, entry in index.items():
        size = (tmp_path / "off" / f"{name}.dat").stat().st_size
        assert size == 4 * int(np.prod(entry["shape"]))


FILL = """
from bench.ours_filled import fill, touch
from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.store.pack.reader import Pack
from pathlib import Path
import sys
model = Transformer(Pack.open(Path(sys.argv[1])), load_kernels(None, 1), 64, kv_bits=8)
assert fill(model) == model.memory_bytes()["kv_cache"] > 0
assert touch(model) >= model._space.nbytes > 0
assert abs(model.forward([3], 63)).max() < 1e6
"""


def test_a_filled_cache_is_all_of_it(tmp_path: Path) -> None:
    packs.write_pack(tmp_path / "m.pico", TINY)
    subprocess.run([sys.executable, "-c", FILL, str(tmp_path / "m.pico")], check=True)
