"""`picoedge generate`: output and error streams, order of failures, models that do not fit."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_runs import (
    GREEDY,
    Ran,
    Run,
    must_not_run,
    said_after,
)

from picoedge.engine import open as opening
from picoedge.engine.options import OpenOptions
from picoedge.errors import StorageError
from picoedge.host import resources
from picoedge.kernels.loader import load_kernels
from picoedge.kernels.reference.backend import NumpyKernels
from picoedge.model.transformer import Transformer
from picoedge.text.tokenizer.load import load_tokenizer


def test_generate_prints_the_text_and_nothing_else(run: Run, pack: Path) -> None:
    ran = run("generate", pack, "-p", "A", "-n", "8", "--raw", *GREEDY)
    tokenizer = load_tokenizer(pack)
    last = tokenizer.encode("A")[-1]
    assert ran == Ran(0, tokenizer.decode(said_after(last, 8)) + "\n", "")


def test_generate_json_has_the_contract_s_fields(run: Run, pack: Path) -> None:
    ran = run("generate", pack, "-p", "AB", "-n", "6", "--raw", "--json", *GREEDY)
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(ran.out)
    tokenizer = load_tokenizer(pack)
    prompt = tokenizer.encode("AB")
    assert report["tokens"] == said_after(prompt[-1], 6)
    assert report["text"] == tokenizer.decode(report["tokens"])
    assert report["prompt_tokens"] == len(prompt)
    assert report["finish_reason"] == "length"
    assert report["boards"] == 1
    assert report["kernels"] == load_kernels(None, 1).name
    assert report["ttft_s"] > 0
    assert report["prefill_tok_s"] == pytest.approx(len(prompt) / report["ttft_s"], rel=0.01)
    assert report["decode_tok_s"] == pytest.approx(1 / report["s_per_token"], rel=0.01)
    assert 20 < report["peak_rss_mb"] < 5000
    assert report["bytes_read"] is None or report["bytes_read"] >= 0


def test_generate_uses_the_template_unless_raw(run: Run, pack: Path) -> None:
    report = json.loads(
        run("generate", pack, "-p", "A", "-n", "3", "--system", "S", "--json", *GREEDY).out
    )
    text = "[system]S[user]A[assistant]"
    assert report["prompt_tokens"] == len(load_tokenizer(pack).encode(text))


def test_generate_takes_a_piped_prompt(run: Run, pack: Path) -> None:
    piped = run("generate", pack, "-n", "5", "--raw", *GREEDY, stdin=b"hello\n")
    assert piped == run("generate", pack, "-p", "hello", "-n", "5", "--raw", *GREEDY)


def test_a_seed_gives_the_same_text(run: Run, pack: Path) -> None:
    def text(seed: int) -> str:
        return run(
            "generate", pack, "-p", "A", "-n", "20", "--seed", str(seed), "--temperature", "9",
            "--top-k", "0", "--top-p", "1", "--min-p", "0",
        ).out  # fmt: skip

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_both_backends_say_the_same(run: Run, pack: Path) -> None:
    args = ["generate", pack, "-p", "A", "-n", "20", "--raw", "--json", *GREEDY]
    numpy = json.loads(run(*args, "--kernels", "numpy").out)
    assert numpy["kernels"] == "numpy"
    assert numpy["tokens"] == json.loads(run(*args).out)["tokens"]


def test_stop_strings_end_the_text(run: Run, pack: Path) -> None:
    whole = run("generate", pack, "-p", "A", "-n", "40", "--raw", *GREEDY).out
    stop = next(c for c in whole[3:] if c.isprintable() and c not in " �")
    ran = run("generate", pack, "-p", "A", "-n", "40", "--raw", "--stop", stop, *GREEDY)
    assert ran.out == whole[: whole.index(stop)] + "\n"


def test_the_end_of_the_context_is_said(run: Run, pack: Path) -> None:
    args = ["generate", pack, "-p", "A", "-n", "-1", "--raw", "-c", "16", *GREEDY]
    ran = run(*args)
    assert ran.code == 0
    assert ran.err == "note: the context of 16 tokens is full: the answer is cut there\n"
    assert json.loads(run(*args, "--json").out)["finish_reason"] == "length"


def test_verbose_says_what_runs_and_how_fast(run: Run, pack: Path) -> None:
    ran = run("generate", pack, "-p", "A", "-n", "3", "--raw", "-t", "1", "-v", *GREEDY)
    first, plan, last = ran.err.splitlines()
    assert first == f"tiny · {load_kernels(None, 1).name}, 1 thread · context 512"
    assert plan == "all of it in memory"
    assert last.startswith("prompt 1 tokens ")
    assert "answer 3 tokens" in last


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that fails at the fourth run of the model: after three tokens."""
    forward, runs = Transformer.forward, itertools.count()

    def fail(model: Transformer, tokens: list[int], position: int) -> np.ndarray:
        if next(runs) == 3:
            raise StorageError("layer-001.safetensors: reading failed", "check the card")
        return forward(model, tokens, position)

    monkeypatch.setattr(Transformer, "forward", fail)


FAILED = "error: layer-001.safetensors: reading failed (check the card)\n"


def test_json_of_an_answer_that_breaks_off_has_what_was_said(
    run: Run, pack: Path, failing: None
) -> None:
    ran = run("generate", pack, "-p", "A", "-n", "8", "--raw", "--json", *GREEDY)
    assert (ran.code, ran.err) == (1, FAILED)
    report, tokenizer = json.loads(ran.out), load_tokenizer(pack)
    assert report["tokens"] == said_after(tokenizer.encode("A")[-1], 3)
    assert report["text"] == tokenizer.decode(report["tokens"])
    assert report["finish_reason"] == "error"
    assert report["error"] == {
        "message": "layer-001.safetensors: reading failed", "hint": "check the card",
    }  # fmt: skip
    assert {"ttft_s", "plan", "disk_wait_s", "prompt_tokens"} <= set(report)


@pytest.mark.parametrize("args", [["generate", "--raw"], ["chat"]])
def test_the_line_of_an_answer_that_breaks_off_is_ended(
    run: Run, pack: Path, failing: None, args: list[str]
) -> None:
    name, *rest = args
    ran = run(name, pack, "-p", "A", "-n", "8", *rest, *GREEDY)
    tokenizer = load_tokenizer(pack)
    prompt = "A" if name == "generate" else "[user]A[assistant]"
    said = tokenizer.decode(said_after(tokenizer.encode(prompt)[-1], 3))
    assert ran == Ran(1, said + "\n", FAILED)


def test_an_answer_that_never_began_leaves_stdout_empty(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise StorageError("gone")

    monkeypatch.setattr(Transformer, "forward", fail)
    assert run("generate", pack, "-p", "A", "--raw") == Ran(1, "", "error: gone\n")
    ran = run("generate", pack, "-p", "A", "--raw", "--json")
    report = json.loads(ran.out)
    assert (report["text"], report["tokens"], report["finish_reason"]) == ("", [], "error")


def test_a_damaged_tokenizer_fails_before_the_model_is_bound(
    run: Run, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged.pico"
    shutil.copytree(pack, damaged)
    (damaged / "tokenizer.json").write_text("{")
    monkeypatch.setattr(Transformer, "__init__", must_not_run)
    ran = run("generate", damaged, "-p", "x")
    assert ran.code == 1
    assert "tokenizer.json" in ran.err


def test_kernels_are_closed_where_a_later_step_fails(
    pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[NumpyKernels] = []
    monkeypatch.setattr(NumpyKernels, "close", lambda self: closed.append(self))
    monkeypatch.setattr(Transformer, "__init__", must_not_run)
    opened = opening.open_pack(pack, OpenOptions(kernels="numpy"))
    with pytest.raises(AssertionError, match="allocated"):
        opening.open_session(opened, opening.load_model)
    assert len(closed) == 1


def test_a_prompt_longer_than_the_context_is_an_error_with_the_counts(run: Run, pack: Path) -> None:
    ran = run("generate", pack, "-p", "x" * 100, "--raw", "-c", "32")
    assert ran.code == 1
    assert ran.out == ""
    assert "100 tokens" in ran.err
    assert "context 32" in ran.err


def test_a_context_the_model_does_not_know_is_refused(run: Run, pack: Path) -> None:
    ran = run("generate", pack, "-p", "x", "-c", "513")
    assert ran.code == 2
    assert "513" in ran.err
    assert "512" in ran.err


def test_a_context_larger_than_memory_is_refused_before_it_is_allocated(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(resources, "available_bytes", lambda: 1 << 20)
    monkeypatch.setattr(Transformer, "__init__", must_not_run)
    ran = run("generate", pack, "-p", "x", "-c", "512", "-n", "-1")
    assert ran.code == 1
    assert "40.9 MB of memory cannot hold the smallest window: " in ran.err
    assert "context of 512 tokens" in ran.err


def test_less_than_the_smallest_window_is_refused_with_figures(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(Transformer, "__init__", must_not_run)
    ran = run("generate", pack, "-p", "x", "-n", "-1", "--memory", "30M")
    assert ran.code == 1
    assert f"interpreter and tokenizer {small} MB + context of 512 tokens" in ran.err
    assert "(allow more with --memory, or take " in ran.err
    assert run("plan", pack, "--memory", "30M") == ran


def test_one_answer_needs_room_for_its_own_tokens_alone(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    """Where a conversation of the context asked for does not fit, a short answer does."""
    monkeypatch.setattr(Transformer, "__init__", must_not_run)
    answer = ["generate", pack, "-p", "x", "--raw", "-c", "512", "--memory", "30M"]
    for n_tokens, context in (("-1", 512), ("40", 64), ("300", 320)):
        assert f"+ context of {context} tokens " in run(*answer, "-n", n_tokens).err


def test_a_model_that_does_not_fit_is_streamed_and_says_the_same(
    run: Run, pack: Path, small: int
) -> None:
    args = ["generate", pack, "-p", "AB", "-n", "6", "--raw", "--json", *GREEDY]
    whole = json.loads(run(*args).out)
    ran = run(*args, "--memory", f"{small + 1.5}M", "-v")
    report = json.loads(ran.out)
    assert report["tokens"] == whole["tokens"]
    assert whole["plan"] is None
    plan = report["plan"]
    assert plan["total_mb"] <= plan["budget_mb"] == small + 1.5
    assert plan["resident_mb"] == report["resident_mb"]
    assert plan["window_depth"] == report["window_depth"] >= 1
    assert plan["streamed_bytes_per_token"] > 0
    assert report["disk_wait_s"] >= 0
    assert report["disk_wait_s"] + report["compute_s"] == pytest.approx(5 * report["s_per_token"])
    _, planned, _, waited = ran.err.splitlines()
    assert " resident, window " in planned
    assert " s predicted, by " in planned
    assert re.fullmatch(r"a token: \S+ s waiting, \S+ s computing, \S+ [KM]B read", waited)


def test_a_gguf_is_packed_on_first_use_and_then_talks(run: Run, smollm2_gguf: Path) -> None:
    args = ["generate", smollm2_gguf, "-p", "The capital of France is", "-n", "2", "--raw", *GREEDY]
    assert run(*args) == Ran(0, " Paris.\n", "")
    shelf = Path(os.environ["PICOEDGE_HOME"], "models")
    (packed,) = shelf.glob("*.pico")
    before = {file: file.stat().st_mtime_ns for file in packed.iterdir()}
    ran = run("chat", smollm2_gguf, "-p", "Say hello.", "-n", "12", "--seed", "1")
    assert (ran.code, ran.err) == (0, "")
    assert len(ran.out) > 1
    assert {file: file.stat().st_mtime_ns for file in packed.iterdir()} == before
