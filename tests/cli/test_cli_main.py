"""The command line: help, wrong words, where settings come from, errors as lines and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_runs import (
    GREEDY,
    ROOT,
    Ran,
    Run,
    default_kernels,
    must_not_run,
    process,
    write_config,
)

from picoedge.cli.main import COMMANDS
from picoedge.engine import open as opening


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
    commands = {where.partition(".")[0] for where, _ in COMMANDS.values()}
    assert not loaded & {f"picoedge.cli.{module}" for module in commands}


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


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["chat", "-p", "x", "--kernels", "foo"], "no kernels named 'foo'"),
        (["generate", "m", "-p", "x", "--kernels", "foo"], "no kernels named 'foo'"),
        (["bench", "m", "--kernels", "foo"], "no kernels named 'foo'"),
        (["perplexity", "m", "-f", "TEXT", "--kernels", "foo"], "no kernels named 'foo'"),
        (["perplexity", "m", "-f", "GONE"], "no such file or directory: GONE"),
        (["chat", "-p", "x", "--top-p", "2"], "--top-p: top_p is 2"),
        (["generate", "m", "-p", "x", "--seed", "-1"], "--seed: seed is -1"),
    ],
)
def test_a_wrong_option_fails_before_anything_is_fetched(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: list[str], error: str
) -> None:
    gone, text = str(tmp_path / "gone" / "file"), tmp_path / "text"
    text.touch()
    paths = {"GONE": gone, "TEXT": text}
    monkeypatch.setattr(opening, "_find", must_not_run)
    ran = run(*(paths.get(word, word) for word in args))
    assert ran.code in (1, 2)
    assert ran.err.startswith(f"error: {error.replace('GONE', gone)}")


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


@pytest.mark.parametrize("name", ["no-such-model", "gone/model.gguf", "gone.pico"])
def test_a_model_that_is_not_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
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
def test_no_error_shows_a_traceback(
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
def test_debug_shows_the_traceback(run: Run, tmp_path: Path, args: list[str]) -> None:
    gone = tmp_path / "gone.gguf"
    ran = run(*args, gone, "-p", "x")
    assert "Traceback (most recent call last)" in ran.err
    assert "Traceback" not in run("generate", gone, "-p", "x").err
