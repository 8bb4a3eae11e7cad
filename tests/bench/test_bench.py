"""The benchmarks: their verdicts, what a run prints, and how sides take turns."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import children, decode, machine, report, results, sizes, speed, suite
from bench.__main__ import NOT_BUILT
from bench.__main__ import main as bench_main
from bench.children import BenchError
from bench.models import Models
from bench.report import Measured

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


def test_a_row_that_failed_is_named_and_never_a_figure(
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
