"""`picoedge chat` for one answer, and what cannot be a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import (
    GREEDY,
    Ran,
    Run,
    said_after,
)

from picoedge.kernels import loader
from picoedge.text.tokenizer.load import load_tokenizer


def test_chat_answers_a_prompt_and_prints_just_that(run: Run, pack: Path) -> None:
    ran = run("chat", pack, "-p", "hi", "-n", "5", *GREEDY)
    tokenizer = load_tokenizer(pack)
    last = tokenizer.encode("[user]hi[assistant]")[-1]
    assert ran == Ran(0, tokenizer.decode(said_after(last, 5)) + "\n", "")


def test_chat_answers_what_is_piped_in(run: Run, pack: Path) -> None:
    assert run("chat", pack, "-n", "5", *GREEDY, stdin=b"hi\n") == run(
        "chat", pack, "-p", "hi", "-n", "5", *GREEDY
    )


@pytest.mark.parametrize(
    ("stdin", "error"),
    [
        (b"", "the prompt is empty"),
        (b" \n\n", "the prompt is empty"),
        (b"a\xff", "standard input is not UTF-8 text (byte 1)"),
        (b"x" * (17 << 20), "standard input is larger than 16 MB"),
    ],
)
@pytest.mark.parametrize("name", ["chat", "generate"])
def test_a_text_that_cannot_be_a_prompt_is_refused(
    run: Run, pack: Path, name: str, stdin: bytes, error: str
) -> None:
    ran = run(name, pack, stdin=stdin)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith(f"error: {error} (")


def test_a_model_without_a_template_cannot_chat_but_can_complete(
    run: Run, pack: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.pico"
    bare.mkdir()
    for file in pack.iterdir():
        if file.name != "chat_template.jinja":
            (bare / file.name).symlink_to(file)
    ran = run("chat", bare, "-p", "hi")
    assert ran.code == 1
    assert "no chat template" in ran.err
    assert "picoedge generate --raw" in ran.err
    raw = run("generate", bare, "-p", "hi", "-n", "4", "--raw", *GREEDY)
    assert run("generate", bare, "-p", "hi", "-n", "4", *GREEDY) == raw


@pytest.mark.usefixtures("libraries_anew")
def test_numpy_that_was_not_asked_for_is_told_also_in_a_pipe(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PICOEDGE_KERNELS")
    monkeypatch.setattr(loader, "usable_levels", lambda machine, flags: [])
    loader._open_here.cache_clear()  # `run` has asked before
    asked = run("chat", pack, "-p", "hi", "-n", "5", "--kernels", "numpy", *GREEDY)
    assert (asked.code, asked.err) == (0, "")
    ran = run("chat", pack, "-n", "5", *GREEDY, stdin=b"hi\n")
    assert (ran.code, ran.out) == (0, asked.out)
    (line,) = ran.err.splitlines()
    assert line.startswith("picoedge: running on NumPy: this processor has none")
