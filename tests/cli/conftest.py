"""Fixtures of the commands' tests."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import shelf_models
from cli_runs import MB, TEMPLATE, Ran, Run, default_kernels, forget_settings, run_here
from terminal import Terminal

from picoedge.engine import fit
from picoedge.registry.packing import pack_model


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of the tiny model, whose greedy text is known, with a chat template."""
    folder = tmp_path_factory.mktemp("model")
    shelf_models.write_folder(folder / "tiny")
    (folder / "tiny" / "chat_template.jinja").write_text(TEMPLATE)
    pack_model(folder / "tiny", folder / "tiny.pico", bits=8)
    return folder / "tiny.pico"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """One command line in this process, with no settings but the test's own."""
    forget_settings(monkeypatch, tmp_path)
    # By name: without a C compiler it is otherwise told on stderr that NumPy runs.
    monkeypatch.setenv("PICOEDGE_KERNELS", default_kernels())

    def run_one(*args: str | Path, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        return run_here(capsys, *args)

    return run_one


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """A process of 40 MB, however large that of the tests is; what a plan counts for it, in MB."""
    monkeypatch.setattr(fit, "rss_bytes", lambda: 40 * MB)
    monkeypatch.setattr(fit, "lasting_bytes", lambda: 40 * MB)
    monkeypatch.setattr(fit, "REFAULT_BYTES", 0)
    monkeypatch.setattr(fit, "release_pages", lambda *args: None)
    return 40 + fit.GROWTH_BYTES // MB


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[list[Terminal]]:
    """For terminals that a test opens, which are closed after it."""
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()
