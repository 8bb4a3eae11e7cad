"""Real models for the tests, through the project's own catalogue and download code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from picoedge.engine.catalogue import Entry, built_in_folder, load_entry
from picoedge.engine.download import fetch
from picoedge.engine.fetching import locked
from picoedge.errors import PicoedgeError

ENTRY_FILES = {
    "smollm2": built_in_folder() / "smollm2-135m.toml",
    "gemma": Path(__file__).parent / "data" / "gemma3-270m.toml",
}
FETCH_ERRORS = pytest.StashKey[dict[str, PicoedgeError]]()


def cache_folder() -> Path:
    """Where models stay between sessions: $PICOEDGE_TEST_CACHE or ~/.cache/picoedge-tests."""
    return Path(os.environ.get("PICOEDGE_TEST_CACHE") or Path.home() / ".cache/picoedge-tests")


def gguf_path(entry: Entry) -> Path:
    return cache_folder() / f"{entry.name}.gguf"


def fetch_model(entry: Entry) -> None:
    """Place the model's GGUF in the test cache, once for all sessions."""
    target = gguf_path(entry)
    with locked(target.with_suffix(".lock"), lambda: None):
        if not target.exists():  # whatever is there under this name was checked when it came
            fetch(entry, target)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch before the first test, so that no test's time limit pays for a slow network."""
    needed = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    errors = session.config.stash.setdefault(FETCH_ERRORS, {})
    for name, file in ENTRY_FILES.items():
        if f"{name}_gguf" in needed and not session.config.option.collectonly:
            try:
                fetch_model(load_entry(file))
            except PicoedgeError as error:
                errors[name] = error


def _gguf(name: str, config: pytest.Config) -> Path:
    error = config.stash[FETCH_ERRORS].get(name)
    if error is not None:
        raise error
    return gguf_path(load_entry(ENTRY_FILES[name]))


@pytest.fixture(scope="session")
def smollm2_gguf(pytestconfig: pytest.Config) -> Path:
    """The GGUF of SmolLM2-135M-Instruct (Q4_1, byte-level BPE)."""
    return _gguf("smollm2", pytestconfig)


@pytest.fixture(scope="session")
def gemma_gguf(pytestconfig: pytest.Config) -> Path:
    """The GGUF of Gemma 3 270M (Q4_K_M, SentencePiece)."""
    return _gguf("gemma", pytestconfig)
