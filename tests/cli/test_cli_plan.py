"""`picoedge plan`: the figures, the picture, the same as in a run."""

from __future__ import annotations

import io
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import shelf_models
from cli_runs import Run, forget_settings, run_here

from picoedge.cli.main import main
from picoedge.cli.plan_picture import ASCII, UNICODE, picture
from picoedge.engine import fit
from picoedge.host.disk_speed import StorageSpeed
from picoedge.store.shards import Unit, UnitKind
from picoedge.store.window.plan import Rates, WindowPlan, forecast, lay_ring, plan_window

KB, MB = 1 << 10, 1 << 20
STORAGE = StorageSpeed(90e6, 60e6, None, 128 * KB, "179:0 mmcblk0")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer: three layers, and a head of its own."""
    return shelf_models.packed_tiny(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """One command line on a board of known speed, in a process of 40 MB."""
    forget_settings(monkeypatch, tmp_path)
    monkeypatch.setattr(fit, "rss_bytes", lambda: 40 * MB)
    monkeypatch.setattr(fit, "lasting_bytes", lambda: 40 * MB)
    monkeypatch.setattr(fit, "GROWTH_BYTES", 4 * MB)
    monkeypatch.setattr(fit, "REFAULT_BYTES", 0)
    monkeypatch.setattr(fit, "release_pages", lambda *args: None)
    monkeypatch.setattr(fit, "storage_speed", lambda path, cache: STORAGE)
    monkeypatch.setattr(fit, "cached_compute", lambda *args, **kwargs: 2e9)
    return partial(run_here, capsys)


# -- the command ---------------------------------------------------------------------------------

SMALL = ["-c", "512", "-t", "1", "--memory", "62M", "--kernels", "numpy"]


def test_the_figures_and_the_picture(run: Run, pack: Path) -> None:
    ran = run("plan", pack, *SMALL)
    assert (ran.code, ran.err) == (0, "")
    table, drawing, legend = ran.out.split("\n\n")
    names = [line.split()[0] for line in table.splitlines()]
    assert names == [
        "model", "budget", "interpreter", "context", "buffers", "resident", "window", "total",
        "read", "a", "storage", "kernels",
    ]  # fmt: skip
    assert "budget       62 MB" in table
    assert "interpreter  44 MB with the tokenizer" in table
    assert "for 512 tokens, 16 bits" in table
    assert "past the page cache" in table
    assert "the clock is the disk" in table
    assert "storage      85.8 MB/s direct, 57.2 MB/s mapped (179:0 mmcblk0)" in table
    assert "kernels      1.86 GB/s (numpy, 1 thread)" in table
    assert [line.split()[0] for line in drawing.splitlines()] == [
        "attention", "0", "1", "2", "head",
    ]  # fmt: skip
    assert "resident" in legend
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "\x1b" not in ran.out


def test_the_plan_is_the_one_that_generate_makes(run: Run, pack: Path) -> None:
    same = [*SMALL, "-c", "64"]  # one answer's context, too: it takes no more than it needs
    generated = run("generate", pack, "-p", "A", "-n", "2", "--raw", "--json", *same)
    made = json.loads(generated.out)["plan"]
    planned = json.loads(run("plan", pack, "--json", *same).out)
    assert {name: planned[name] for name in made if name != "resident_mb"} == {
        name: value for name, value in made.items() if name != "resident_mb"
    }
    assert planned["resident_mb"] == made["resident_mb"]


def test_json_has_the_layers_and_the_speeds(run: Run, pack: Path) -> None:
    report = json.loads(run("plan", pack, "--json", *SMALL).out)
    assert report["whole"] is False
    assert [layer["layer"] for layer in report["resident"]] == [0, 1, 2, 3]
    assert [set(layer) for layer in report["streamed"]] == [
        *[{"layer", "attention", "ffn"}] * 3, {"layer", "head"},
    ]  # fmt: skip
    for name, total in (
        ("resident", report["resident_mb"] * MB),
        ("streamed", report["streamed_bytes_per_token"]),
    ):
        assert sum(sum(layer.values()) - layer["layer"] for layer in report[name]) == total
    assert report["storage"] == {
        "device": "179:0 mmcblk0", "direct_bytes_per_s": 90e6, "mapped_bytes_per_s": 60e6,
        "limit_bytes_per_s": None,
    }  # fmt: skip
    assert report["kernels"] == {"name": "numpy", "threads": 1, "weight_bytes_per_s": 2e9}
    assert report["total_mb"] <= report["budget_mb"] == 62
    assert report["clock"] == "disk"


def test_a_model_that_fits_is_said_to_fit(run: Run, pack: Path) -> None:
    args = ["plan", pack, "-c", "512", "-t", "1", "--kernels", "numpy", "--memory", "100M"]
    ran = run(*args)
    assert (ran.code, ran.err) == (0, "")
    assert "all of it fits, nothing is streamed" in ran.out
    assert "attention" not in ran.out
    report = json.loads(run(*args, "--json").out)
    assert report["whole"] is True
    assert report["streamed_bytes_per_token"] == report["window_mb"] == 0
    weights = sum(file.stat().st_size for file in pack.glob("*.safetensors"))
    assert report["resident_mb"] + report["apart_mb"] == pytest.approx(weights / MB, abs=0.1)
    parts = ("fixed_mb", "kv_cache_mb", "activations_mb", "resident_mb", "apart_mb")
    assert report["total_mb"] == pytest.approx(sum(report[name] for name in parts))


def test_a_budget_that_is_too_small_is_refused_with_figures(run: Run, pack: Path) -> None:
    ran = run("plan", pack, "--memory", "42M")
    assert (ran.code, ran.out) == (1, "")
    (line,) = ran.err.splitlines()
    assert line.startswith("error: 42 MB of memory cannot hold the smallest window: ")
    assert "--kv-bits 8" in line


def test_nothing_is_loaded(run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from picoedge.model.transformer import Transformer
    from picoedge.store.window.weights import StreamedWeights

    def must_not_run(*args: object, **kwargs: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(Transformer, "__init__", must_not_run)
    monkeypatch.setattr(StreamedWeights, "__init__", must_not_run)
    assert run("plan", pack, *SMALL).code == 0


def test_eight_bits_and_the_way_of_reading_are_planned_with(run: Run, pack: Path) -> None:
    plain = json.loads(run("plan", pack, "--json", *SMALL).out)
    eight = json.loads(run("plan", pack, "--json", "--kv-bits", "8", *SMALL).out)
    assert eight["kv_cache_mb"] < plain["kv_cache_mb"]
    more = [*SMALL, "--memory", "62.4M"]  # what the kernel reads ahead is counted
    mapped = json.loads(run("plan", pack, "--json", "--window-io", "mmap", *more).out)
    assert (plain["window_io"], mapped["window_io"]) == ("direct", "mmap")
    assert mapped["predicted_s_per_token"] > plain["predicted_s_per_token"]


@pytest.mark.parametrize(("encoding", "signs"), [("utf-8", UNICODE), ("UTF8", UNICODE),
                                                 ("ascii", ASCII), ("latin-1", ASCII)])  # fmt: skip
def test_characters_that_stdout_has(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, signs: object
) -> None:
    used = []
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    real = picture

    def noted(plan: WindowPlan, chosen: object) -> object:
        used.append(chosen)
        return real(plan, chosen)  # type: ignore[arg-type]

    monkeypatch.setattr("picoedge.cli.plan_picture.picture", noted)
    monkeypatch.setattr(sys, "stdout", stdout)
    main([str(arg) for arg in ("plan", pack, *SMALL)])
    assert used == [signs]
    stdout.seek(0)
    assert stdout.buffer.read().isascii() == (signs is ASCII)


# -- the picture ---------------------------------------------------------------------------------


def unit(kind: UnitKind, layer: int, first: int, last: int) -> Unit:
    each = 64 * KB if kind == "attention" else 128 * KB
    file = f"layer-{layer:03d}.safetensors"
    return Unit(kind, layer, range(first, last), file, 4096 + first * each, (last - first) * each)


def plan_of(layers: int, room: int) -> WindowPlan:
    """Two attention and three FFN units a layer; of every FFN the first stays, so does the head."""
    units: list[Unit] = []
    for i in range(layers):
        units += [unit("attention", i, 0, 2), unit("attention", i, 2, 4)]
        units += [unit("ffn", i, 0, 2), unit("ffn", i, 2, 4), unit("ffn", i, 4, 6)]
    head = unit("head", layers, 0, 4)
    kept = frozenset(u for u in units if u.kind == "ffn" and not u.shards[0]) | {head}
    sizes = [u.nbytes for u in units if u not in kept]
    ring = lay_ring(sizes, room)
    return WindowPlan((*units, head), kept, ring, forecast([], ring, Rates(1, 1)))


def test_the_picture() -> None:
    assert list(picture(plan_of(3, 512 * KB), ASCII)) == [
        "  attention          FFN",
        "0 oooooooooooooooooo ##################oooooooooooooooooooo..................",
        "1 .................. ##################+.....................................",
        "2 .................. ##################+.....................................",
        "head ########################################################################",
        "",
        "# resident   + partly   . streamed   o in the window as a token begins",
    ]


def test_many_layers_stand_several_on_a_line() -> None:
    lines = list(picture(plan_of(80, 512 * KB), UNICODE))
    assert lines[1].split()[0] == "0"
    assert lines[1].split()[3] == "1"
    assert len(lines) == 1 + 40 + 1 + 2


@pytest.mark.parametrize("layers", [1, 2, 40, 41, 80, 81, 126, 200])
def test_it_fits_a_terminal(layers: int) -> None:
    lines = list(picture(plan_of(layers, 256 * KB), ASCII))
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 44
    drawn = " ".join(lines[1:-3]).split()
    assert [int(word) for word in drawn if word.isdigit()] == list(range(layers))


def test_a_piece_of_a_layer_that_is_partly_resident() -> None:
    run = Unit("ffn", 0, range(400), "layer-000.safetensors", 4096, 400 * 64 * KB)
    plan = plan_window([run], 200 * 64 * KB, Rates(1e8, 1e10), MB)
    assert plan is not None
    (_, bar, *_rest) = picture(plan, ASCII)
    kept = bar.split()[1].count("#")
    assert bar.split()[1][kept] in "+o"
    assert kept == pytest.approx(76 * plan.resident_bytes / run.nbytes, abs=1)


def test_a_slice_without_attention_or_head() -> None:
    units = (unit("ffn", 0, 0, 2), unit("ffn", 1, 0, 2))
    ring = lay_ring([units[1].nbytes], units[1].nbytes)
    plan = WindowPlan(units, frozenset(units[:1]), ring, forecast([], ring, Rates(1, 1)))
    lines = list(picture(plan, ASCII))
    assert lines[0].split() == ["FFN"]
    assert [set(line.split()[1]) for line in lines[1:3]] == [{"#"}, {"o"}]
