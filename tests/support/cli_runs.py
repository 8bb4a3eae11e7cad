"""Command lines run in this process or in one of their own, on a tiny model with known text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_model import follow

from picoedge.cli.main import main
from picoedge.kernels.loader import describe_kernels

ROOT = Path(__file__).parents[2]
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
GREEDY = ["--temperature", "0"]
MB = 1 << 20


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


def forget_settings(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Take the user's own settings away; folders of settings are below `home`."""
    for name in [name for name in os.environ if name.startswith("PICOEDGE_")]:
        monkeypatch.delenv(name)
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "PICOEDGE_HOME"):
        monkeypatch.setenv(name, str(home / name))


def run_here(capsys: pytest.CaptureFixture[str], *args: str | Path) -> Ran:
    """One command line in this process."""
    code = main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return Ran(code, captured.out, captured.err)


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


def must_not_run(*args: object, **kwargs: object) -> None:
    raise AssertionError("allocated before it was checked")
