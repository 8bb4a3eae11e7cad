"""A command opens and checks everything once, and a lone prompt's tokenizer does not stay."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import shelf_models

from picoedge.cli.main import main
from picoedge.config import SamplingOptions
from picoedge.engine import fit
from picoedge.engine import open as opening
from picoedge.engine.options import OpenOptions
from picoedge.errors import ContextError, UsageError
from picoedge.kernels import loader, native
from picoedge.registry.details import describe_pack
from picoedge.registry.shelf import Shelf
from picoedge.store.pack.reader import Pack
from picoedge.text.tokenizer.piece_table import PieceTable

CHECKS = [(fit, "choose_context"), (Pack, "open"), (native, "open_library")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a Hugging Face folder."""
    return shelf_models.write_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PICOEDGE_")]:
        monkeypatch.delenv(name)
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "PICOEDGE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of each of CHECKS."""
    counts: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            counts[name] += 1
            return function(*args, **named)

        return call

    for owner, name in CHECKS:
        call = counted(name, getattr(owner, name))
        monkeypatch.setattr(owner, name, staticmethod(call) if isinstance(owner, type) else call)
    return counts


@pytest.mark.parametrize("kernels", ["native", "of other sources"])
@pytest.mark.parametrize(
    "words",
    [
        ["generate", "-p", "The", "--raw", "-n", "1"],
        ["bench", "-p", "4", "-n", "1", "-r", "1"],
        ["perplexity", "-f", "TEXT"],
        ["plan"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.usefixtures("libraries_anew")
def test_nothing_is_opened_or_checked_twice(
    folder: Path, tmp_path: Path, calls: Counter[str], words: list[str], kernels: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if kernels != "native":  # NumPy computes, and the command says why
        monkeypatch.setattr(native, "_ABI", native._ABI + 1)
    (tmp_path / "text").write_text("The quick brown fox")
    command, *more = (str(tmp_path / "text") if word == "TEXT" else word for word in words)
    pack = Shelf.from_environment().open(str(folder)).path
    for model in (str(folder), pack.stem, str(pack)):  # a source packed before, a name, a path
        calls.clear()
        loader._open_here.cache_clear()  # as in a process of its own
        assert main([command, model, *more, "-t", "1"]) == 0
        assert calls == {"choose_context": 1, "open": 1, "open_library": 1}


def packed(folder: Path, tmp_path: Path) -> Path:
    from picoedge.registry.packing import pack_model

    pack_model(folder, tmp_path / "tiny.pico", bits=8)
    return tmp_path / "tiny.pico"


def test_a_lone_prompts_tokenizer_is_gone_before_the_memory_is_planned(
    folder: Path, tmp_path: Path
) -> None:
    alive: list[bool] = []

    def load(pack: Pack, options: OpenOptions, progress: Any) -> fit.LoadedModel:
        gc.collect()
        alive.append(tokenizer() is not None)
        return opening.load_model(pack, options, progress)

    options = OpenOptions(threads=1, memory_bytes=1 << 30)
    for lone in (True, False):
        opened = opening.open_pack(packed(folder, tmp_path / str(lone)), options)
        tokenizer = weakref.ref(opened.tokenizer)
        prompt = opened.prompter.complete("The")
        with closing(opening.open_session(opened, load, prompt if lone else None)) as made:
            assert isinstance(made._vocabulary, PieceTable) == lone
    assert alive == [False, True]


def test_a_prompt_is_refused_before_the_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    opened = opening.open_pack(packed(folder, tmp_path), OpenOptions(n_ctx=4))
    with pytest.raises(ContextError, match="the prompt has 9 tokens, the context 4"):
        opened.prompter.complete("too long!")


def test_a_context_the_model_does_not_know(folder: Path, tmp_path: Path) -> None:
    opened = opening.open_pack(packed(folder, tmp_path), OpenOptions(n_ctx=1 << 20))
    with pytest.raises(UsageError, match="the model knows 512"):
        opened.options  # noqa: B018


def test_a_models_own_sampling_gives_way_to_what_was_chosen(folder: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(folder, theirs)
    (theirs / "generation_config.json").write_text('{"temperature": 0.25, "top_k": 7}')
    pack = packed(theirs, tmp_path)
    assert opening.open_pack(pack, OpenOptions()).sampling == SamplingOptions(
        temperature=0.25, top_k=7
    )
    chosen = opening.open_pack(pack, OpenOptions(sampling={"temperature": 0.0, "seed": 1}))
    assert chosen.sampling == SamplingOptions(temperature=0.0, top_k=7, seed=1)
    assert describe_pack(Pack.open(pack))["sampling"] == {"temperature": 0.25, "top_k": 7}
