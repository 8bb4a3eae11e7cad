"""The commands that README shows, run in its order in one folder, on a tiny model.

The model stands under the name of the catalogue's default one, so that nothing is fetched; the hub
is one on the loopback interface. Words are added to what would take minutes, and placeholders
become files that are here.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import shelf_models
from cli_runs import ROOT, TEMPLATE, default_kernels, forget_settings, process
from cluster_boards import until
from documented_commands import shown_commands
from hub_site import hub_site
from training_text import english

from picoedge.cli.main import main
from picoedge.registry.packing import pack_model

MODEL = "smollm2-135m"
# What a line with these words is not run for.
NOT_RUN = {
    "make": "installs from the network, tests, or emulates boards as root: CI and tests/lab do",
    "apt": "changes the machine",
    "pip": "needs the package index",
    "eval": "is for an interactive shell",
    "python": "emulates boards as root: tests/lab does",
    "picoedge run --join": "needs a board that invites: tests/cli/test_cli_run.py",
    "picoedge chat --continue": "goes on with a chat in a terminal: tests/cli/test_chat_kept.py",
    "picoedge chats rm": "is mentioned without its chat: tests/cli/test_cli_chats.py",
}
PLACEHOLDERS = {
    "MODEL": MODEL, "NAME": MODEL, "TEXT": "hi", "SIZE": "1G", "N": "8", "OUT": "out",
    "F": "tales/tales.txt", "FILE…": "tales/tales.txt", "FILE.jsonl": "examples/household.jsonl",
    "SOURCE": "source", "ADAPTER": "adapter", "FOLDER": "household", "NAME.pico": "new.pico",
    "HOST:PORT": "127.0.0.1:9",
    "120M": "1G",  # commands run in this process, which other tests have made larger
}  # fmt: skip
ADDED = {
    "chat": ("-n", "4"),
    "generate": ("-n", "4"),
    "bench": ("-p", "8", "-n", "4", "-r", "1"),
    "finetune": ("--steps", "2", "--context", "64", "--batch-size", "2", "--rehearsal", "0"),
    "train": ("--length", "32", "--batch-size", "2", "--micro-batch", "2"),
    "merge": ("--tokens", "64"),
    "perplexity": ("--tokens", "64"),
    "keys invite": ("--address", "192.168.1.20:7433"),  # boards on loop-back cannot be reached
    "run": ("--listen", "127.0.0.1:0", "-t", "1"),
    "top": ("-n", "1"),
    "rm": ("-y",),
}
AS_LONG = ("--resume", "--config")  # of `train`: what the run had counts


def documented() -> list[list[str]]:
    """Commands of README, each once; what removes the model comes last."""
    shown = shown_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    found = dict.fromkeys(tuple(words) for line in shown for words in line.commands())
    commands = [list(words) for words in found if words[0] != "echo" and len(words) > 1]
    return sorted(commands, key=lambda words: words[1] == "rm")


def line_of(words: Sequence[str]) -> str:
    return " ".join(words).replace(".venv/bin/", "")


def why_not(words: Sequence[str]) -> str:
    """Why a command is not run; "" if it is."""
    line = line_of(words)
    return next((why for begin, why in NOT_RUN.items() if f"{line} ".startswith(f"{begin} ")), "")


def arguments(words: Sequence[str]) -> list[str]:
    """What follows `picoedge`, with files that are here."""
    words = [word.strip("[]") for word in words[1:] if word != "…"]
    if "--minutes" in words:
        at = words.index("--minutes")
        words[at : at + 2] = ["--steps", "2"]
    elif words[0] == "train" and "--text" in words:
        words += ["--preset", "1m", "--steps", "1"]
    known = [os.path.expanduser(PLACEHOLDERS.get(word, word)) for word in words]
    more = ADDED.get(words[0], ADDED.get(" ".join(words[:2]), ()))
    return [*known, *(() if set(AS_LONG) & set(words) else more)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's home and folder, with all that the commands name, and a hub."""
    folder = tmp_path_factory.mktemp("home")
    source = shelf_models.write_folder(folder / "source")
    (source / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "tales").mkdir()
    (folder / "tales" / "tales.txt").write_text(english(12_000))
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "Downloads").mkdir()
    place = folder / "Downloads" / "Qwen3-0.6B-Q8_0.gguf"
    gguf = shelf_models.write_gguf(place, template=TEMPLATE)
    with hub_site() as site, pytest.MonkeyPatch.context() as patch:
        site.repos["Qwen/Qwen3-0.6B-GGUF"] = {gguf.name: gguf.read_bytes()}
        forget_settings(patch, folder)
        patch.setenv("HOME", str(folder))
        patch.setenv("HF_ENDPOINT", site.url)
        patch.setenv("PICOEDGE_KERNELS", default_kernels())
        patch.setenv("PICOEDGE_CLUSTER", str(folder / "cluster"))
        patch.chdir(folder)
        shelf = Path(os.environ["PICOEDGE_HOME"], "models")
        shelf.mkdir(parents=True)
        pack_model(source, shelf / f"{MODEL}.pico", bits=8)
        yield folder


@pytest.fixture(scope="module")
def daemons(home: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The service of this board, which the next `picoedge run` replaces."""
    running: list[subprocess.Popen[bytes]] = []
    yield running
    stop(running)


def stop(running: list[subprocess.Popen[bytes]]) -> None:
    for daemon in running:
        daemon.send_signal(signal.SIGTERM)
    for daemon in running:
        _, err = daemon.communicate(timeout=20)
        assert daemon.returncode == 0, err
    running.clear()


def start(running: list[subprocess.Popen[bytes]], words: Sequence[str]) -> None:
    stop(running)
    file = Path(os.environ["PICOEDGE_CLUSTER"], "daemon.json")
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    daemon = process(*words, **pipes)
    running.append(daemon)

    def listens() -> bool:
        assert daemon.poll() is None, daemon.communicate()
        return file.exists() and json.loads(file.read_text())["pid"] == daemon.pid

    until(listens, "the service listens")


def remove_results(folder: Path) -> None:
    """What stands where the placeholders point to: each command makes it anew."""
    for name in ("OUT", "NAME.pico"):
        path = folder / PLACEHOLDERS[name]
        shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(path.with_suffix(".run"), ignore_errors=True)


@pytest.mark.timeout(180)
def test_commands_that_are_shown_run(
    home: Path, daemons: list[subprocess.Popen[bytes]],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In one test: later ones use what earlier ones made."""
    failed = {}
    for words in documented():
        if why_not(words):
            continue
        given = arguments(words)
        remove_results(home)
        if given[0] == "run":
            start(daemons, given)
            continue
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Why is the sky blue?")))
        code = main(given)
        out, err = capsys.readouterr()
        if code or "Traceback" in err or not (out.strip() or given[0] == "chats"):
            failed[line_of(words)] = (given, code, out, err)
    assert failed == {}


def test_each_reason_is_of_a_command_that_is_shown() -> None:
    used = {why_not(words) for words in documented()}
    assert used >= set(NOT_RUN.values())
    assert sum(not why_not(words) for words in documented()) > 30
