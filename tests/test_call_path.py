"""How many files of picoedge a reader passes through on the way to a token, and to a sum.

Counted by a profiler hook: files in which a function is called. Module and class bodies do not
count, and each command runs once before it is counted, so that imports are over.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from cluster_boards import cluster_of
from shelf_models import packed_tiny

import picoedge
from picoedge.cli.main import main

PACKAGE = Path(picoedge.__file__).parent
# When this was first counted (a8b77f2) it was 49 files to the first token and 100 to the first sum.
TOKEN_MOST, SUM_MOST = 34, 70


class Visited(ABC):
    """Files of picoedge in which a function was called, until `_returned` sets `ended`."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}  # calls by path below the package
        self.ended = False
        self._summing = False
        self._names: dict[str, str | None] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        name = self._name(code.co_filename)
        if name is None or self.ended or not code.co_flags & inspect.CO_OPTIMIZED:
            return
        if event == "call":
            self.files[name] = self.files.get(name, 0) + 1
        elif event == "return":
            self._returned(name, code.co_name)

    def _name(self, path: str) -> str | None:
        if path not in self._names:
            inside = path.startswith(f"{PACKAGE}{os.sep}")
            self._names[path] = os.path.relpath(path, PACKAGE) if inside else None
        return self._names[path]

    @abstractmethod
    def _returned(self, name: str, function: str) -> None:
        """A function of this file returns."""


class UntilToken(Visited):
    """Until the first text of the answer is written."""

    def _returned(self, name: str, function: str) -> None:
        self.ended = (name, function) == (os.path.join("cli", "output.py"), "write_answer")


class UntilSum(Visited):
    """Until the model has the first sum over boards that it has begun."""

    def _returned(self, name: str, function: str) -> None:
        if name == os.path.join("model", "bound_kernels.py"):
            self.ended = self._summing and function == "finish"
            self._summing |= function == "begin"


@contextmanager
def counting(visited: Visited) -> Iterator[None]:
    before = sys.getprofile()
    threading.setprofile(visited)
    sys.setprofile(visited)
    try:
        yield
    finally:
        sys.setprofile(before)
        threading.setprofile(None)  # type: ignore[arg-type]


def count(visited: Visited, words: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    assert main(words) == 0, capsys.readouterr().err
    with counting(visited):
        assert main(words) == 0, capsys.readouterr().err
    assert visited.ended, "the end was not seen"
    capsys.readouterr()
    with capsys.disabled():
        print(f"\n{len(visited.files)} files, {sum(visited.files.values())} calls:")
        for name in sorted(visited.files):
            print(f"  {visited.files[name]:6} {name}")
    return len(visited.files)


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PICOEDGE_")]:
        monkeypatch.delenv(name)
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "PICOEDGE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def test_files_to_the_first_token(
    tmp_path: Path, settled: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = packed_tiny(tmp_path)
    words = ["generate", str(pack), "-p", "The", "--raw", "-n", "2", "-t", "1"]
    assert count(UntilToken(), words, capsys) <= TOKEN_MOST


def test_files_to_the_first_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = packed_tiny(tmp_path)
    with cluster_of(tmp_path / "cluster", 2) as cluster:
        cluster.shelve(pack)
        cluster[1].lend_environ(monkeypatch)
        words = ["generate", str(pack), "-p", "The", "--raw", "-n", "2", "-t", "1"]
        words += ["--cluster", "--boards", "2", "-ts", "1,1"]
        assert count(UntilSum(), words, capsys) <= SUM_MOST
