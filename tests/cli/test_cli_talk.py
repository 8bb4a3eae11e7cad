"""chat, generate, bench and perplexity as commands: what is printed where, and what errors get."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shelf_models
from tiny_model import follow

from picoedge.cli.main import COMMANDS, main
from picoedge.engine import fit
from picoedge.engine import open as opening
from picoedge.engine.options import OpenOptions
from picoedge.errors import StorageError
from picoedge.host import memory
from picoedge.kernels import loader
from picoedge.kernels.loader import describe_kernels, load_kernels
from picoedge.kernels.reference.backend import NumpyKernels
from picoedge.model.transformer import Transformer
from picoedge.registry.packing import pack_model
from picoedge.store.pack.reader import Pack
from picoedge.text.tokenizer.load import load_tokenizer

ROOT = Path(__file__).parents[2]
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
GREEDY = ["--temperature", "0"]
MB = 1 << 20


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of the tiny model, whose greedy text is known, with a chat template."""
    folder = tmp_path_factory.mktemp("model")
    shelf_models.write_folder(folder / "tiny")
    (folder / "tiny" / "chat_template.jinja").write_text(TEMPLATE)
    pack_model(folder / "tiny", folder / "tiny.pico", bits=8)
    return folder / "tiny.pico"


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """One command line in this process, with no settings but the test's own."""
    for name in [name for name in os.environ if name.startswith("PICOEDGE_")]:
        monkeypatch.delenv(name)
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "PICOEDGE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    # By name, as those who have no C compiler are otherwise told on stderr that NumPy runs.
    monkeypatch.setenv("PICOEDGE_KERNELS", default_kernels())

    def run_one(*args: str | Path, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run_one


def default_kernels() -> str:
    """What runs here when nothing is chosen, as --kernels takes it."""
    return describe_kernels().partition(":")[0].lower()


def write_config(text: str) -> Path:
    path = Path(os.environ["XDG_CONFIG_HOME"], "picoedge", "config.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def said_after(last: int, count: int) -> list[int]:
    """The tokens the tiny model says after the token `last`."""
    tokens = []
    for _ in range(count):
        last = follow(last)
        tokens.append(last)
    return tokens


def process(*args: str | Path, **kwargs: object) -> subprocess.Popen[bytes]:
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "PICOEDGE_KERNELS": default_kernels(),
    }
    command = [sys.executable, "-m", "picoedge", *map(str, args)]
    return subprocess.Popen(command, env=environ, **kwargs)  # type: ignore[call-overload, no-any-return]


# -- the command line itself ---------------------------------------------------------------------


def test_help_lists_every_command_and_imports_none() -> None:
    code = "import sys; from picoedge.cli.main import main; main(['--help']); print(*sys.modules)"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    ).stdout
    *lines, modules = shown.splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert [name for name in COMMANDS if name not in listed] == []
    loaded = set(modules.split())
    assert not loaded & {"numpy", "rich", "jinja2", "tokenizers", "psutil", "zmq"}
    assert not loaded & {module for module, _ in COMMANDS.values()}


@pytest.mark.parametrize("name", ["chat", "generate", "plan", "bench", "perplexity"])
def test_each_command_has_a_help_page(run: Run, name: str) -> None:
    ran = run(name, "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"Usage: picoedge {name} ")
    assert "--threads" in ran.out


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (["run", "smollm2"], "picoedge run starts", "to talk with a model: picoedge chat smollm2"),
        (["chta"], "no such command: chta", "did you mean: picoedge chat?"),
        (["zzz"], "no such command: zzz", "picoedge --help lists the commands"),
        (["./a.gguf"], "no such command: ./a.gguf", "did you mean: picoedge chat ./a.gguf"),
        (["chat", "--temprature", "1"], "no such option: --temprature", "did you mean"),
        (["generate", "-p", "x"], "missing MODEL", "picoedge generate --help"),
        (["perplexity", "x"], "missing --file", "picoedge perplexity --help"),
        (["generate", "x", "-p"], "option '-p' requires an argument", "picoedge --help"),
        (["bench", "x", "-o", "xml"], "--output: 'xml' is not one of", "picoedge bench --help"),
        (["generate", "x", "-t", "0"], "--threads: 0 is not in the range", "picoedge generate --h"),
    ],
)
def test_wrong_command_lines_exit_2(run: Run, args: list[str], error: str, hint: str) -> None:
    ran = run(*args)
    assert ran.code == 2
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    assert line.startswith(f"error: {error}")
    assert f"({hint}" in line


def test_no_command_shows_the_help_and_exits_2(run: Run) -> None:
    ran = run()
    assert ran.code == 2
    assert "Commands:" in ran.err


def test_version(run: Run) -> None:
    from picoedge import __version__

    assert run("--version") == Ran(0, f"picoedge {__version__}\n", "")


def test_a_shell_gets_its_completion_script(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_PICOEDGE_COMPLETE", "zsh_source")  # bash's asks which bash is there
    ran = run()
    assert (ran.code, ran.err) == (0, "")
    assert "_PICOEDGE_COMPLETE=zsh_complete picoedge" in ran.out
    monkeypatch.setenv("_PICOEDGE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "picoedge ver")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run().out.split() == ["plain,verify"]


# -- generate ------------------------------------------------------------------------------------


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


def test_both_twins_say_the_same(run: Run, pack: Path) -> None:
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


# -- chat, for one answer ------------------------------------------------------------------------


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
def test_what_cannot_be_a_prompt(run: Run, pack: Path, name: str, stdin: bytes, error: str) -> None:
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


def test_numpy_that_nobody_asked_for_is_told_also_in_a_pipe(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PICOEDGE_KERNELS")
    monkeypatch.setattr(loader, "usable_levels", lambda machine, flags: [])
    asked = run("chat", pack, "-p", "hi", "-n", "5", "--kernels", "numpy", *GREEDY)
    assert (asked.code, asked.err) == (0, "")
    ran = run("chat", pack, "-n", "5", *GREEDY, stdin=b"hi\n")
    assert (ran.code, ran.out) == (0, asked.out)
    (line,) = ran.err.splitlines()
    assert line.startswith("picoedge: running on NumPy: this processor has none")


# -- what fails first ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["chat", "-p", "x", "--kernels", "foo"], "no kernels named 'foo'"),
        (["generate", "m", "-p", "x", "--kernels", "foo"], "no kernels named 'foo'"),
        (["bench", "m", "--kernels", "foo"], "no kernels named 'foo'"),
        (["perplexity", "m", "-f", "/dev/null", "--kernels", "foo"], "no kernels named 'foo'"),
        (["perplexity", "m", "-f", "/nonexistent"], "no such file or directory: /nonexistent"),
        (["chat", "-p", "x", "--top-p", "2"], "--top-p: top_p is 2"),
        (["generate", "m", "-p", "x", "--seed", "-1"], "--seed: seed is -1"),
    ],
)
def test_a_wrong_option_fails_before_anything_is_fetched(
    run: Run, monkeypatch: pytest.MonkeyPatch, args: list[str], error: str
) -> None:
    monkeypatch.setattr(opening, "_find", _must_not_run)
    ran = run(*args)
    assert ran.code in (1, 2)
    assert ran.err.startswith(f"error: {error}")


def test_a_damaged_tokenizer_fails_before_the_model_is_bound(
    run: Run, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged.pico"
    shutil.copytree(pack, damaged)
    (damaged / "tokenizer.json").write_text("{")
    monkeypatch.setattr(Transformer, "__init__", _must_not_run)
    ran = run("generate", damaged, "-p", "x")
    assert ran.code == 1
    assert "tokenizer.json" in ran.err


def test_kernels_are_closed_where_a_later_step_fails(
    pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[NumpyKernels] = []
    monkeypatch.setattr(NumpyKernels, "close", lambda self: closed.append(self))
    monkeypatch.setattr(Transformer, "__init__", _must_not_run)
    opened = opening.open_pack(pack, OpenOptions(kernels="numpy"))
    with pytest.raises(AssertionError, match="allocated"):
        opening.open_session(opened, opening.load_model)
    assert len(closed) == 1


# -- where settings come from --------------------------------------------------------------------


def context_shown(ran: Ran) -> int:
    return int(ran.err.splitlines()[0].rpartition("context ")[2])


def test_flag_beats_variable_beats_file_beats_default(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["generate", pack, "-p", "A", "-n", "1", "-v"]
    assert context_shown(run(*args)) == 512
    write_config("ctx-size = 60\n")
    assert context_shown(run(*args)) == 60
    monkeypatch.setenv("PICOEDGE_CTX_SIZE", "50")
    assert context_shown(run(*args)) == 50
    assert context_shown(run(*args, "--ctx-size", "40")) == 40


def test_the_model_may_come_from_the_environment(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOEDGE_MODEL", str(pack))
    assert run("chat", "-p", "hi", "-n", "1", *GREEDY).code == 0


def test_kernels_may_be_chosen_by_variable(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOEDGE_KERNELS", "numpy")
    report = json.loads(run("generate", pack, "-p", "A", "-n", "1", "--json").out)
    assert report["kernels"] == "numpy"


def test_a_stop_string_from_a_variable_keeps_its_spaces(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from picoedge.engine.session import Session

    asked = []
    generate = Session.generate

    def noted(self: Session, ids: list[int], **values: Any) -> Iterator[str]:
        asked.append(values["stop"])
        return generate(self, ids, **values)

    monkeypatch.setattr(Session, "generate", noted)
    monkeypatch.setenv("PICOEDGE_STOP", "the end ")
    run("generate", pack, "-p", "A", "-n", "1")
    assert asked == [("the end ",)]


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--temperature", "hot", "'hot' is not a valid float"),
        ("--temperature", "-1", "temperature is -1"),
        ("--top-p", "1.5", "top_p is 1.5"),
        ("--memory", "lots", "not a size: 'lots'"),
        ("--ctx-size", "0", "0 is not in the range"),
        ("--seed", "-5", "seed is -5"),
        ("--threads", "2.5", "'2.5' is not a valid integer"),
    ],
)
def test_a_wrong_value_names_its_source(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch, flag: str, value: str, said: str
) -> None:
    name = flag.lstrip("-").replace("-", "_")
    args = ["generate", pack, "-p", "A", "-n", "1"]
    by_flag = run(*args, flag, value)
    assert by_flag.err.startswith(f"error: {flag}: {said}")
    monkeypatch.setenv(f"PICOEDGE_{name.upper()}", value)
    by_variable = run(*args)
    assert by_variable.err.startswith(f"error: PICOEDGE_{name.upper()}: {said}")
    monkeypatch.delenv(f"PICOEDGE_{name.upper()}")
    path = write_config(f"{name} = {value}\n" if value[-1].isdigit() else f'{name} = "{value}"\n')
    by_file = run(*args)
    assert by_file.err.startswith(f"error: {path}: {name}: {said}")
    assert {by_flag.code, by_variable.code, by_file.code} == {2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature = 1", "no setting named 'temprature' (did you mean: temperature?"),
        ("temperature = ", "Invalid value"),
        ("temperature = {a = 1}", "temperature is dict"),
        ("top_k = [1, 2]", "top_k is list"),
        ("[chat]\ntop_k = 1", "no setting named 'chat'"),
    ],
)
def test_a_wrong_config_file_is_named(run: Run, text: str, said: str) -> None:
    path = write_config(text)
    ran = run("generate", "x", "-p", "A")
    assert ran.code == 2
    assert ran.err.startswith(f"error: {path}: {said}")


def test_a_config_file_that_is_no_text_is_named(run: Run) -> None:
    path = write_config("")
    path.write_bytes(b"\xff\xfe")
    assert run("generate", "x", "-p", "A").err.startswith(f"error: {path}: not utf-8 text (")


# -- what does not fit ---------------------------------------------------------------------------


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


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """A process of 40 MB, however large that of the tests is; what a plan counts for it, in MB."""
    monkeypatch.setattr(fit, "rss_bytes", lambda: 40 * MB)
    monkeypatch.setattr(fit, "REFAULT_BYTES", 0)
    monkeypatch.setattr(fit, "release_pages", lambda *args: None)
    return 40 + fit.GROWTH_BYTES // MB


def test_a_context_larger_than_memory_is_refused_before_it_is_allocated(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 20)
    monkeypatch.setattr(Transformer, "__init__", _must_not_run)
    ran = run("generate", pack, "-p", "x", "-c", "512")
    assert ran.code == 1
    assert "40.9 MB of memory cannot hold the smallest window: " in ran.err
    assert "context of 512 tokens" in ran.err


def test_less_than_the_smallest_window_is_refused_with_figures(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(Transformer, "__init__", _must_not_run)
    ran = run("generate", pack, "-p", "x", "--memory", "30M")
    assert ran.code == 1
    assert f"interpreter and tokenizer {small} MB + context of 512 tokens" in ran.err
    assert "(allow more with --memory, or take " in ran.err
    assert run("plan", pack, "--memory", "30M") == ran


def test_what_does_not_fit_is_streamed_and_says_the_same(run: Run, pack: Path, small: int) -> None:
    args = ["generate", pack, "-p", "AB", "-n", "6", "--raw", "--json", *GREEDY]
    whole = json.loads(run(*args).out)
    ran = run(*args, "--memory", f"{small + 2}M", "-v")
    report = json.loads(ran.out)
    assert report["tokens"] == whole["tokens"]
    assert whole["plan"] is None
    plan = report["plan"]
    assert plan["total_mb"] <= plan["budget_mb"] == small + 2
    assert plan["resident_mb"] == report["resident_mb"]
    assert plan["window_depth"] == report["window_depth"] >= 1
    assert plan["streamed_bytes_per_token"] > 0
    assert report["disk_wait_s"] >= 0
    assert report["disk_wait_s"] + report["compute_s"] == pytest.approx(5 * report["s_per_token"])
    _, planned, _, waited = ran.err.splitlines()
    assert " resident, window " in planned
    assert " s predicted, by " in planned
    assert re.fullmatch(r"a token: \S+ s waiting, \S+ s computing, \S+ [KM]B read", waited)


def test_bench_tells_of_waiting_on_stderr(run: Run, pack: Path, small: int) -> None:
    args = ["bench", pack, "-p", "32", "-n", "4", "-r", "1", "-c", "512", "-v", "--json"]
    ran = run(*args, "--memory", f"{small + 2}M")
    assert json.loads(ran.out)["plan"]["total_mb"] <= small + 2
    planned, prompt, token = ran.err.splitlines()
    assert " resident, window " in planned
    assert prompt.startswith("pp32: a token: ")
    assert token.startswith("tg4: a token: ")
    assert run(*args).err == "all of it in memory\n"


def _must_not_run(*args: object, **kwargs: object) -> None:
    raise AssertionError("allocated before it was checked")


# -- bench and perplexity ------------------------------------------------------------------------


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


# -- a real model --------------------------------------------------------------------------------


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


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["no-such-model", "/nonexistent/model.gguf", "gone.pico"])
def test_a_model_that_is_not_there(run: Run, name: str) -> None:
    ran = run("generate", name, "-p", "x")
    assert ran.code in (1, 2)
    assert ran.err.startswith("error: ")
    assert name in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("stdin", [None, b"hi"])
def test_a_template_s_own_words_are_one_safe_line(
    run: Run, pack: Path, tmp_path: Path, stdin: bytes | None
) -> None:
    hostile = tmp_path / "hostile.pico"
    shutil.copytree(pack, hostile)
    refusal = r"{{ raise_exception('a\n\x1b[31mb') }}"
    (hostile / "chat_template.jinja").write_text(refusal)
    ran = run("chat", hostile, "-p", "hi") if stdin is None else run("chat", hostile, stdin=stdin)
    assert (ran.code, ran.out) == (1, "")
    (line,) = ran.err.splitlines()
    assert line.isprintable()
    assert "a [31mb" in line


def test_a_full_disk_behind_stdout_is_one_line(pack: Path) -> None:
    with open("/dev/full", "wb") as full:
        child = process("generate", pack, "-p", "A", stdout=full, stderr=subprocess.PIPE)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert err.decode() == "error: no space left on device (free some space on that disk)\n"


@pytest.mark.parametrize("args", [["generate", "-n", "400", "-p", "A"], ["chat", "-p", "A"]])
def test_a_closed_pipe_ends_quietly(pack: Path, args: list[str]) -> None:
    name, *rest = args
    reading, writing = os.pipe()
    os.close(reading)
    child = process(name, pack, *rest, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    _, err = child.communicate(timeout=60)
    assert err == b""
    assert child.returncode == 1


def test_a_closed_stdout_is_no_traceback(pack: Path) -> None:
    command = f'exec "{sys.executable}" -m picoedge generate "{pack}" -p A -n 2 >&-'
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(["sh", "-c", command], env=environ, capture_output=True, timeout=60)
    assert b"Traceback" not in ran.stderr


def test_an_encoding_that_lacks_the_answer_s_characters_is_no_error(pack: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    environ["PICOEDGE_KERNELS"] = default_kernels()
    args = [sys.executable, "-m", "picoedge", "generate", str(pack), "-p", "A", "-n", "200"]
    ran = subprocess.run([*args, *GREEDY], env=environ, capture_output=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("error", "code", "err"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 1, "error: out of memory (a smaller --ctx-size"),
        (
            OSError(28, "No space left on device", "/x"),
            1,
            "error: no space left on device: /x (free",
        ),
        (ZeroDivisionError("oh"), 1, "error: ZeroDivisionError: oh (this is a defect"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
)
def test_whatever_happens_there_is_no_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, err: str
) -> None:
    from picoedge.cli import models

    def fail(prompt: str | None) -> str:
        raise error

    monkeypatch.setattr(models, "chosen_prompt", fail)
    ran = run("generate", "x")
    assert ran.code == code
    assert ran.err.startswith(err) if err else ran.err == ""


@pytest.mark.parametrize("args", [["--debug", "generate"], ["generate", "--debug"]])
def test_debug_shows_the_traceback(run: Run, args: list[str]) -> None:
    ran = run(*args, "/nonexistent.gguf", "-p", "x")
    assert "Traceback (most recent call last)" in ran.err
    assert "Traceback" not in run("generate", "/nonexistent.gguf", "-p", "x").err
