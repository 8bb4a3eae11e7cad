"""`picoedge bench` and `picoedge perplexity`."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from cli_runs import (
    Run,
)

from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.store.pack.reader import Pack
from picoedge.text.tokenizer.load import load_tokenizer


def test_bench_tells_of_waiting_on_stderr(run: Run, pack: Path, small: int) -> None:
    args = ["bench", pack, "-p", "32", "-n", "4", "-r", "1", "-c", "512", "-v", "--json"]
    ran = run(*args, "--memory", f"{small + 2}M")
    assert json.loads(ran.out)["plan"]["total_mb"] <= small + 2
    planned, prompt, token = ran.err.splitlines()
    assert " resident, window " in planned
    assert prompt.startswith("pp32: a token: ")
    assert token.startswith("tg4: a token: ")
    assert run(*args).err == "all of it in memory\n"


def test_bench_prints_llama_bench_s_rows(run: Run, pack: Path) -> None:
    ran = run("bench", pack, "-p", "32", "-n", "4", "-r", "2", "-t", "1")
    assert (ran.code, ran.err) == (0, "")
    header, rule, first, second = ran.out.splitlines()
    assert header == "| model | size | kernels | threads | test | t/s |"
    assert set(rule) <= set("|-: ")
    assert [line.split(" | ")[4] for line in (first, second)] == ["pp32", "tg4"]
    assert " ± " in first


def test_bench_json(run: Run, pack: Path) -> None:
    report = json.loads(run("bench", pack, "-p", "32", "-n", "4", "-r", "3", "-o", "json").out)
    assert [row["name"] for row in report["rows"]] == ["pp32", "tg4"]
    for row in report["rows"]:
        assert len(row["runs"]) == 3
        assert row["mean"] == pytest.approx(sum(row["runs"]) / 3, rel=1e-3)
        assert min(row["runs"]) > 0


def test_bench_leaves_out_what_is_zero_and_refuses_nothing(run: Run, pack: Path) -> None:
    assert "tg" not in run("bench", pack, "-p", "8", "-n", "0", "-r", "1").out
    ran = run("bench", pack, "-p", "0", "-n", "0")
    assert ran.code == 2
    assert "nothing to measure" in ran.err


def test_bench_does_not_fit_a_small_context(run: Run, pack: Path) -> None:
    ran = run("bench", pack, "-p", "64", "-c", "32")
    assert ran.code == 1
    assert "64 tokens, a context of 32" in ran.err


def test_perplexity_is_the_definition(run: Run, pack: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    ran = run("perplexity", pack, "--file", file, "--tokens", "300", "--json")
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(ran.out)
    tokens = load_tokenizer(pack).encode(file.read_text())[:300]
    assert report["tokens"] == 300
    exact = load_kernels(None, 1).name.startswith("native")
    near = 1e-6 if exact else 1e-3  # NumPy's chunks and single tokens round apart
    assert report["perplexity"] == pytest.approx(perplexity_token_by_token(pack, tokens), rel=near)


def perplexity_token_by_token(pack: Path, tokens: list[int]) -> float:
    model = Transformer(Pack.open(pack), load_kernels(None, 1), 512)
    total = 0.0
    for i, (token, following) in enumerate(itertools.pairwise(tokens)):
        logits = model.forward((token,), i).astype(np.float64)
        total -= logits[following] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    model.close()
    return math.exp(total / (len(tokens) - 1))


def test_perplexity_of_a_shorter_text_says_how_many_tokens(
    run: Run, pack: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("hello")
    assert json.loads(run("perplexity", pack, "-f", file, "--json").out)["tokens"] == 5
    assert run("perplexity", pack, "-f", file).out.endswith(" over 5 tokens\n")


def test_perplexity_reads_no_more_of_a_large_file_than_it_needs(
    run: Run, pack: Path, tmp_path: Path
) -> None:
    file = tmp_path / "large.txt"
    with file.open("wb") as out:
        out.write("é".encode() * 5000)
        out.truncate(1 << 36)  # a hole: reading it all would take minutes and 64 GB
    assert json.loads(run("perplexity", pack, "-f", file, "--tokens", "100", "--json").out)


@pytest.mark.parametrize(
    ("content", "error", "code"),
    [
        (b"", "has 0 tokens", 2),
        (b"x", "has 1 tokens", 2),
        (b"ab\xff\xfe" + b"x" * 100, "is not UTF-8 text (byte 2)", 2),
        (b"x" * 600, "600 tokens", 2),
        (None, "no such file or directory", 1),
    ],
)
def test_texts_that_cannot_be_measured(
    run: Run, pack: Path, tmp_path: Path, content: bytes | None, error: str, code: int
) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    ran = run("perplexity", pack, "-f", file)
    assert (ran.code, ran.out) == (code, "")
    assert error in ran.err
