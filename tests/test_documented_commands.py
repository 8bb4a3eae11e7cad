"""Every command line that a README shows is accepted by its program."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from documented_commands import Shown, named_options, shown_commands

import bench.__main__ as bench
from hw.lab import __main__ as lab
from picoedge.cli.main import build_group

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *("README.md", "SECURITY.md", "ARCHITECTURE.md"),
    *("hw/README.md", "hw/lab/README.md", "firmware_scripts/README.md"),
]
# A placeholder for a value, and an accepted value.
STANDS_FOR = {
    "SIZE": "400M", "N": "8", "ID": "1", "HOST:PORT": "10.0.0.1:7433", "TIME": "10m", "F": "file",
    "FILE": "file", "OWNER/REPO:QUANT": "owner/repo:Q8_0", "STRING": "picoedge-join:x",
}  # fmt: skip
NOT_RUN = {
    "apt": "changes the machine",
    "pip": "needs the package index",
    "eval": "is for an interactive shell",
    "echo": "is no program of ours",
}


def documented() -> list[tuple[str, Shown]]:
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    return [(name, shown) for name, text in texts.items() for shown in shown_commands(text)]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the files that documents name, and no settings."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("document", "shown"), documented(), ids=lambda value: str(getattr(value, "line", value))[:90]
)
def test_a_command_that_is_shown_is_taken(document: str, shown: Shown) -> None:
    for words in shown.commands():
        check(words, shown.whole)


def check(words: Sequence[str], whole: bool) -> None:
    """Fail where the program does not take these words."""
    name, rest = words[0].removeprefix(".venv/bin/"), list(words[1:])
    if name == "sudo":
        check(rest, whole)
    elif name == "make":
        rest = [word for word in rest if not word.startswith("PYTHON=")]
        subprocess.run(["make", "-n", *rest], cwd=ROOT, check=True, capture_output=True)
    elif name == "python":
        assert rest[0] == "-m", words
        check_module(rest[1], rest[2:])
    elif name == "picoedge":
        check_picoedge(rest, whole)
    else:
        assert name in NOT_RUN, words


def check_module(module: str, words: list[str]) -> None:
    if module == "bench":
        assert words[0] in ("NAME", *bench.BENCHES)
    else:
        assert module in ("hw.lab", "hw.lab.cluster")
        words = [word for word in words if word != "..."]
        options = lab.parser().parse_args(without_model(words))
        if options.command[1:2] == ["picoedge"]:
            check_picoedge(options.command[2:], True)


def without_model(words: list[str]) -> list[str]:
    """Words without `--model`, which the cluster's own parser has."""
    at = words.index("--model") if "--model" in words else len(words)
    return words[:at] + words[at + 2 :]


def check_picoedge(words: list[str], whole: bool) -> None:
    words = [STANDS_FOR.get(word.strip("[]"), word.strip("[]")) for word in words if word != "…"]
    group: click.Command = build_group()
    while isinstance(group, click.Group) and words and words[0][:1] != "-":
        found = group.get_command(click.Context(group), words.pop(0))
        assert found is not None, words
        group = found
    try:
        group.make_context("picoedge", words, obj={})
    except click.MissingParameter:
        assert not whole  # `picoedge rm` may be mentioned
    except click.exceptions.Exit:
        pass


def options_of(command: click.Command) -> set[str]:
    """Long options of a command and of those below it."""
    names = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            names |= options_of(below)
    return names


def test_options_that_are_named_are_there() -> None:
    known = options_of(build_group()) | {"--help"}
    known |= {name for action in lab.parser()._actions for name in action.option_strings}
    for document in DOCUMENTS:
        named = named_options((ROOT / document).read_text(encoding="utf-8"))
        assert [name for name in named if name not in known] == [], document


@pytest.mark.parametrize(
    "line", ["picoedge chatt", "picoedge chat --colour", "make x", "python -m hw.lap", "rm x"]
)
def test_a_command_that_no_program_takes_is_found(line: str) -> None:
    with pytest.raises((AssertionError, click.ClickException, subprocess.CalledProcessError)):
        check(line.split(), whole=True)


def test_lines_of_a_document() -> None:
    text = (
        "```sh\nmake chat  # talks\n```\n"
        "```\n$ picoedge plan m\n3 boards\ndesk$ picoedge run\n```\n"
        "see `picoedge ps` and `--json`"
    )
    lines = shown_commands(text)
    assert [(shown.line, shown.whole) for shown in lines] == [
        ("make chat  # talks", True),
        ("picoedge plan m", True),
        ("picoedge run", True),
        ("picoedge ps", False),
    ]
    assert list(lines[0].commands()) == [["make", "chat"]]
