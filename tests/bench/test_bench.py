"""The benchmarks: their verdicts, their arithmetic, their reference, and what a run prints."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_models import write_gguf
from tiny_model import write_tiny_model

from bench import (
    agreement,
    children,
    decode,
    machine,
    peers_torch,
    profile,
    report,
    results,
    sizes,
    speed,
    suite,
)
from bench.__main__ import NOT_BUILT
from bench.__main__ import main as bench_main
from bench.children import BenchError
from bench.models import Models
from bench.report import Measured
from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import open_source

ROWS = [
    "decode_smollm2_1t",
    "decode_smollm2_2t",
    "decode_gemma_2t",
    "prefill_smollm2_1t",
    "prefill_smollm2_2t",
    "prefill_gemma_2t",
    "memory_smollm2",
    "numpy_decode",
    "first_token_s",
    "pack_smollm2",
    "pack_gemma",
    "pack_peak_mb",
    "ppl_smollm2",
    "ppl_gemma",
    "top1_smollm2",
    "top1_gemma",
]


# -- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "must", "ok"),
    [
        (1.3, ">= 1.3", True),
        (1.2999999, ">= 1.3", False),
        (1.1, "<= 1.1", True),
        (1.1000001, "<= 1.1", False),
        (0.99, "0.99-1.005", True),
        (1.005, "0.99-1.005", True),
        (1.0051, "0.99-1.005", False),
        (0.98, "0.99-1.005", False),
        (math.nan, ">= 1.0", False),
        (math.nan, "<= 1.0", False),
        (math.nan, "0.99-1.005", False),
    ],
)
def test_a_row_is_held_to_what_it_must(value: float, must: str, ok: bool) -> None:
    assert report.meets(value, must) is ok


def test_a_condition_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="about 3"):
        report.meets(3.0, "about 3")


def test_a_row_is_judged_before_it_is_rounded() -> None:
    line = report.row(Measured("r", 1.29999999, (1.29999999,)), ">= 1.3", 1.7)
    assert (line.value, line.ok) == (1.3, False)


def test_every_row_has_a_target_and_one_measurement() -> None:
    assert list(decode.TARGETS) == ROWS
    assert sorted(name for names, _ in decode.GROUPS for name in names) == sorted(ROWS)
    for target in decode.TARGETS.values():
        report.meets(1.0, target.must)


def test_rows_are_chosen_by_name() -> None:
    assert suite.chosen_rows(decode.TARGETS, None) == ROWS
    assert suite.chosen_rows(decode.TARGETS, "pack_gemma, ppl_gemma") == ["pack_gemma", "ppl_gemma"]
    with pytest.raises(ValueError, match="nosuch"):
        suite.chosen_rows(decode.TARGETS, "pack_gemma,nosuch")


def row(name: str, value: float) -> dict[str, Any]:
    return {"name": name, "value": value}


def test_a_row_measured_again_replaces_the_one_of_its_name() -> None:
    kept = [row("ppl_gemma", 1.0), row("pack_gemma", 1.02), row("of_another_time", 3.0)]
    assert results.merged(kept, [row("pack_gemma", 1.01)], ROWS) == [
        row("pack_gemma", 1.01),
        row("ppl_gemma", 1.0),
    ]


def test_single_rows_are_merged_into_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def measure(name: str, value: float) -> suite.Measure:
        return lambda models, rounds: [Measured(name, value, (value,))]

    groups = tuple(((name,), measure(name, 1.0)) for name in ("pack_smollm2", "pack_gemma"))
    monkeypatch.setattr(decode, "GROUPS", groups)
    monkeypatch.setattr(machine, "commit", lambda: "one")
    monkeypatch.setattr(suite, "describe_machine", dict)
    into = tmp_path / "results.json"
    every = ["decode", "--row", "pack_gemma", "--row", "pack_smollm2", "--into", str(into)]
    assert bench_main(every) == 0
    monkeypatch.setattr(decode, "GROUPS", ((("pack_gemma",), measure("pack_gemma", 1.5)),))
    monkeypatch.setattr(machine, "commit", lambda: "two")
    assert bench_main(["decode", "--row", "pack_gemma", "--into", str(into)]) == 0
    rows = json.loads(into.read_text())["rows"]
    assert [(r["name"], r["value"], r["ok"], r["commit"]) for r in rows] == [
        ("pack_smollm2", 1.0, True, "one"),
        ("pack_gemma", 1.5, False, "two"),
    ]
    assert "pack_smollm2" in capsys.readouterr().out.rpartition("results.json:")[2]


@pytest.mark.parametrize("text", ["{", "[]", '{"bench": "mesh", "rows": []}'])
def test_a_file_of_something_else_is_not_written_over(
    text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "notes.json"
    path.write_text(text)
    assert bench_main(["decode", "--row", "pack_gemma", "--into", str(path)]) == 3
    assert str(path) in capsys.readouterr().err
    assert path.read_text() == text


# -- what a run says ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOT_BUILT)
def test_a_bench_that_is_not_built_measures_nothing(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_main([name, "--json"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "not built yet" in err


def test_an_unknown_bench_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_main(["nosuch"]) == 2
    assert "usage" in capsys.readouterr().err


def test_a_missing_peer_ends_the_run_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "is_installed", lambda package: package != "llama_cpp")
    assert bench_main(["decode", "--json"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "decode_gemma_2t needs llama_cpp" in err
    assert "numpy_decode needs" not in err


def test_what_failed_is_said_and_never_reported_as_a_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fails(models: Models, rounds: int) -> list[Measured]:
        raise BenchError("the disk is on fire")

    def works(models: Models, rounds: int) -> list[Measured]:
        return [Measured("numpy_decode", 21.0, (20.0, 22.0), {"peak_rss_mb": 1.0}, "tok/s")]

    groups = ((("pack_gemma",), fails), (("numpy_decode",), works))
    monkeypatch.setattr(decode, "GROUPS", groups)
    assert bench_main(["decode", "--json", "--rows", "pack_gemma,numpy_decode"]) == 1
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert result["bench"] == "decode"
    assert result["machine"]["cores"] >= 1
    assert result["rows"] == [
        {
            "name": "numpy_decode",
            "value": 21.0,
            "must": ">= 8",
            "aim": 20,
            "ok": True,
            "runs": [20.0, 22.0],
        }
    ]
    assert result["raw"]["numpy_decode"] == {"peak_rss_mb": 1.0}
    assert result["raw"]["failed"] == {"pack_gemma": "the disk is on fire"}
    assert "| numpy_decode | 21 | >= 8 | 20 | yes | 20 22 |" in out
    assert "pack_gemma: not measured: the disk is on fire" in out


def test_a_real_run_ends_in_one_json_line(smollm2_gguf: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "bench", "decode", "--json", "--rounds", "1",
            "--rows", "pack_smollm2,first_token_s", "--smollm2", str(smollm2_gguf),
        ],
        cwd=children.ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    rows = {line["name"]: line for line in result["rows"]}
    assert rows.keys() == {"pack_smollm2", "first_token_s"}
    assert rows["pack_smollm2"]["ok"]
    assert 1.0 <= rows["pack_smollm2"]["value"] <= 1.03
    assert result["raw"]["pack_smollm2"]["gguf_tensor_bytes"] == 96576768
    assert rows["first_token_s"]["value"] > 0


# -- by turns ----------------------------------------------------------------------------------


def test_sides_take_turns_and_the_order_turns_round() -> None:
    order: list[str] = []

    def side(name: str) -> Any:
        def run() -> dict[str, float]:
            order.append(name)
            return {"decode": float(len(order))}

        return run

    taken = speed.by_turns({name: side(name) for name in "abc"}, 3)
    assert "".join(order) == "abccbaabc"
    assert [rates["decode"] for rates in taken["a"]] == [1, 6, 7]


def test_the_ratio_is_against_the_faster_setting_of_the_peer() -> None:
    taken = {
        "picoedge": [{"decode": 30.0}, {"decode": 20.0}, {"decode": 40.0}],
        "llama.cpp": [{"decode": 10.0}, {"decode": 10.0}, {"decode": 90.0}],
        "llama.cpp flash": [{"decode": 20.0}, {"decode": 10.0}, {"decode": 20.0}],
    }
    row = speed.ratio_row("decode_x", "decode", taken)
    assert row.value == pytest.approx(30 / 20)
    assert row.runs == pytest.approx((1.5, 2.0, 2.0))
    assert row.raw["tok_s"]["llama.cpp"] == [10.0, 10.0, 90.0]


def test_memory_counts_only_processes_that_did_the_work() -> None:
    good = {"prompt_tokens": sizes.PROMPT_TOKENS, "tokens": [1] * sizes.GENERATE}
    assert sizes._peak(children.Finished(json.dumps(good), 180.0, 1.0)) == 180.0
    with pytest.raises(BenchError, match="999"):
        sizes._peak(children.Finished(json.dumps({**good, "prompt_tokens": 999}), 90.0, 1.0))


# -- children ----------------------------------------------------------------------------------


def child(code: str, **options: Any) -> children.Finished:
    return children.run([sys.executable, "-c", code], **options)


WEIGH_TWO = """
import sys
import bench.decode
from bench.children import run
heavy = {"numpy", "torch", "gguf"} & sys.modules.keys()
assert not heavy, f"a child's peak would begin with that of {heavy}"
small = run([sys.executable, "-c", "print(1)"])
large = run([sys.executable, "-c", "b = bytearray(120 << 20); print(2)"])
print([small.peak_rss_mb, large.peak_rss_mb])
"""


def test_a_child_is_measured_alone() -> None:
    small, large = child(WEIGH_TWO).json()
    assert 2 < small < 60
    assert 100 < large - small < 140


def test_a_child_ends_with_its_answer() -> None:
    assert child("print('said'); print('{\"a\": 1}')").json() == {"a": 1}
    assert child("print('{')\nprint('\"a\": 1}')").json() == {"a": 1}


def test_a_child_sees_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PICOEDGE_KERNELS", "PICOEDGE_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/of/the/user")
    seen = child("import json, os; print(json.dumps(dict(os.environ)))").json()
    assert not [name for name in seen if name.startswith(("OPENBLAS_", "PICOEDGE_"))]
    assert seen["XDG_CONFIG_HOME"] != "/of/the/user"


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(BenchError, match="no such luck"):
        child("raise SystemExit('no such luck')")
    with pytest.raises(BenchError, match="no JSON"):
        child("print('done')").json()


def test_a_child_that_hangs_is_ended() -> None:
    with pytest.raises(BenchError, match="too long"):
        child("import sys; sys.stdin = open('/dev/zero'); sys.stdin.read()", timeout_s=0.3)


def test_the_first_byte_is_what_is_timed() -> None:
    code = "import sys, os; os.write(1, b'x'); os.write(2, b'y'); print('z' * 100000)"
    assert 0 < speed.seconds_to_first_byte(["-c", code]) < 30
    with pytest.raises(BenchError, match="nothing to say"):
        speed.seconds_to_first_byte(["-c", "raise SystemExit('nothing to say')"])


def test_the_machine_is_described() -> None:
    about = machine.describe()
    assert about["cores"] >= 1
    assert about["numpy"] == np.__version__
    assert machine.cpu_model("processor: 0\nmodel name\t: A Chip\n") == "A Chip"
    assert machine.commit()


# -- agreement ---------------------------------------------------------------------------------


def chunks(logits: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for at in range(0, len(logits), size):
        yield logits[at : at + size]


def test_perplexity_is_of_each_id_given_those_before() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((9, 50)).astype(np.float32)
    ids = rng.integers(0, 50, 9).tolist()
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    expected = math.exp(-np.mean([math.log(p[i, ids[i + 1]]) for i in range(8)]))
    for size in (1, 4, 9):
        assert agreement.perplexity(ids, chunks(logits, size)) == pytest.approx(expected)
    flat = np.zeros((9, 50), np.float32)
    assert agreement.perplexity(ids, chunks(flat, 3)) == pytest.approx(50)


def reference(folder: Path) -> tuple[np.ndarray, list[int]]:
    """A reference of one text, 4 ids given and 5 generated, and its logits after every id."""
    logits = np.random.default_rng(1).standard_normal((8, 20)).astype(np.float32)
    logits[np.arange(8), np.arange(8)] = 6.0  # every gap is wide
    np.save(folder / "logits-0.npy", logits[3:])
    ids = [0] * 4 + logits[3:].argmax(axis=1).tolist()
    agreement.write_texts(str(folder), [{"ids": ids, "prompt": 4}])
    return logits, ids


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_reference_agrees_with_itself(tmp_path: Path, size: int) -> None:
    logits, ids = reference(tmp_path)

    def own(given: list[int]) -> Iterator[np.ndarray]:
        assert given == ids[:-1]
        return chunks(logits, size)

    found = agreement.follow(str(tmp_path), own)
    assert (found["positions"], found["wide"], found["top1"]) == (5, 5, 1.0)
    assert found["mean_kl"] == pytest.approx(0, abs=1e-12)


def test_another_choice_at_a_clear_position_counts(tmp_path: Path) -> None:
    logits, _ = reference(tmp_path)
    other = logits.copy()
    other[5, 19] = 9.0
    found = agreement.follow(str(tmp_path), lambda ids: chunks(other, 3))
    assert found["top1"] == pytest.approx(4 / 5)
    assert found["mean_kl"] > 0.1
    other = logits.copy()
    other[2, 19] = 9.0  # inside the prompt: not asked for
    assert agreement.follow(str(tmp_path), lambda ids: chunks(other, 3))["top1"] == 1.0


def test_a_close_call_does_not_count() -> None:
    ours: dict[str, list[Any]] = {
        "gap": [0.24, 0.26, 3.0],
        "same": [False, True, True],
        "kl": [0.0, 0.0, 0.3],
    }
    found = agreement.summary(ours)
    assert (found["top1"], found["wide"]) == (1.0, 2)
    assert found["top1_all"] == pytest.approx(2 / 3)
    assert found["missed_gaps"] == [0.24]
    assert found["mean_kl"] == pytest.approx(0.1)


# -- the reference -----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_reference_of_a_gguf_computes_what_we_do(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    write_gguf(tmp_path / "m.gguf", architecture=architecture, tied=tied)
    ids = np.random.default_rng(2).integers(0, 64, 40).tolist()
    model = peers_torch.build(str(tmp_path / "m.gguf"))
    theirs = np.concatenate(list(peers_torch.logits_of(model, ids)))
    pack_source(open_source(tmp_path / "m.gguf"), tmp_path / "m.pico", bits=32)
    own = Transformer(Pack.open(tmp_path / "m.pico"), load_kernels("numpy", 1), 64)
    ours = np.concatenate([part.copy() for part in own.forward_all(ids, 0)])
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


def test_the_reference_continues_as_if_read_at_once(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", architecture="gemma3")
    model = peers_torch.build(str(tmp_path / "m.gguf"))
    ids, logits = peers_torch.greedy(model, [5, 9, 2], 20)
    whole = np.concatenate(list(peers_torch.logits_of(model, ids)))
    assert ids[:3] == [5, 9, 2]
    assert logits.shape == (20, whole.shape[1])
    assert np.abs(whole[2:-1] - logits).max() < 1e-3 * np.abs(whole).max()
    assert logits.argmax(axis=1).tolist() == ids[3:]


# -- the profile -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    pack_source(open_source(write_tiny_model(folder / "hf")), folder / "tiny.pico", bits=4)
    return folder / "tiny.pico"


def test_a_timed_model_computes_the_same(tiny_pack: Path) -> None:
    timed = profile.TimedKernels(load_kernels(None, 1))
    ours, plain = (
        Transformer(Pack.open(tiny_pack), kernels, 64).forward([1, 2, 3], 0).copy()
        for kernels in (timed, load_kernels(None, 1))
    )
    assert np.array_equal(ours, plain)
    assert timed.bound == 5 * 3 + 1


def test_a_profile_adds_up(tiny_pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_main(["profile", str(tiny_pack), "-t", "1"]) == 0
    out = capsys.readouterr().out
    for name in ("project_qkv", "attend", "project_down", "project_head", "python between"):
        assert out.count(f"| {name} |") == 2
    runs = [(1.0, {"a": 0.25, "b": 0.5}), (1.0, {"a": 0.25, "b": 0.5})]
    times = profile.breakdown(runs, shell_s=0.05)
    assert times == pytest.approx({"a": 250, "b": 500, "python between": 200, "whole": 950})
