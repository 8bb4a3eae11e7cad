"""`--adapter` of every command that takes it, and `picoedge show` of an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shelf_models
from adapters_material import random_adapter
from cli_runs import GREEDY, Run

from picoedge.registry.packing import pack_model
from picoedge.store.adapter_refusals import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from picoedge.store.adapters import read_adapter, write_adapter
from picoedge.store.pack.reader import Pack

TEXT = "The quick brown fox jumps over the lazy dog. " * 4


@pytest.fixture
def adapter(pack: Path, tmp_path: Path) -> Path:
    """An adapter of two targets for the tiny model, strong enough to change what it says."""
    made = random_adapter(Pack.open(pack).config, ("q_proj", "down_proj"), strength=40.0)
    write_adapter(tmp_path / "mine", made)
    return tmp_path / "mine"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def words_of(command: str, pack: Path, adapter: Path | str, text: Path) -> list[str | Path]:
    """A short command line with an adapter."""
    more: dict[str, list[str | Path]] = {
        "chat": ["-p", "hi", "-n", "3", *GREEDY],
        "generate": ["-p", "hi", "-n", "3", *GREEDY],
        "plan": [],
        "bench": ["-p", "4", "-n", "2", "-r", "1"],
        "perplexity": ["--file", text, "--tokens", "64"],
        "merge": ["-o", text.parent / "merged.pico"],
    }
    return [command, pack, "--adapter", adapter, *more[command]]


COMMANDS = ["chat", "generate", "plan", "bench", "perplexity", "merge"]


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_reports_name_the_adapter(
    run: Run, pack: Path, adapter: Path, text: Path, command: str
) -> None:
    ran = run(*words_of(command, pack, adapter, text), "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["adapter"] == {
        "name": "mine",
        "path": str(adapter),
        "rank": 4,
        "alpha": 160,
        "targets": ["q_proj", "down_proj"],
        "bytes": sum(file.stat().st_size for file in adapter.iterdir()),
        "identity": read_adapter(adapter).identity,
    }


@pytest.mark.parametrize("command", COMMANDS[1:-1])
def test_reports_without_an_adapter_name_none(
    run: Run, pack: Path, text: Path, command: str
) -> None:
    ran = run(*words_of(command, pack, "none", text), "--json")
    assert ran.code == 0, ran.err
    assert "adapter" not in json.loads(ran.out)


def test_it_changes_what_is_said_and_measured(
    run: Run, pack: Path, adapter: Path, text: Path
) -> None:
    for command in ("chat", "generate", "perplexity"):
        plain = run(*words_of(command, pack, "none", text))
        beside = run(*words_of(command, pack, adapter, text))
        assert (plain.code, beside.code) == (0, 0)
        assert plain.out != beside.out
    rows = run(*words_of("bench", pack, adapter, text)).out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| tiny + mine"] * 2
    assert "\nadapter " in run(*words_of("plan", pack, adapter, text)).out


def _configured(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / ADAPTER_CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def _truncated(folder: Path) -> None:
    path = folder / ADAPTER_WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "wrong rank": (_configured(r=3), "has rank 4, adapter_config.json says 3"),
    "broken JSON": (lambda folder: (folder / ADAPTER_CONFIG).write_text("{"), "valid JSON"),
    "no config": (lambda folder: (folder / ADAPTER_CONFIG).unlink(), "holds no adapter"),
    "no weights": (lambda folder: (folder / ADAPTER_WEIGHTS).unlink(), "does not exist"),
    "truncated": (_truncated, "would end at byte"),
    "DoRA": (_configured(use_dora=True), "DoRA"),
    "a pickle": (
        lambda folder: (folder / ADAPTER_WEIGHTS).rename(folder / "adapter_model.bin"),
        "pickle",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_adapter_is_an_error_of_one_line(
    run: Run, pack: Path, adapter: Path, text: Path, command: str
) -> None:
    for name, (damage, told) in DAMAGE.items():
        folder = adapter.with_name(name)
        write_adapter(folder, read_adapter(adapter))
        damage(folder)
        ran = run(*words_of(command, pack, folder, text))
        assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1), ran.err
        assert ran.err.startswith("error: ")
        assert str(folder) in ran.err
        assert told in ran.err
        assert ran.err.endswith(")\n")  # the remedy
    assert not (text.parent / "merged.pico").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_adapter_of_another_model_is_one_line(
    run: Run, adapter: Path, tmp_path: Path, text: Path, command: str
) -> None:
    pack_model(shelf_models.write_gguf(tmp_path / "other.gguf"), tmp_path / "other.pico")
    ran = run(*words_of(command, tmp_path / "other.pico", adapter, text))
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1), ran.err
    assert f"error: {adapter}: the adapter is of another model: " in ran.err
    assert "(give the model that it was trained on)" in ran.err
    assert not (text.parent / "merged.pico").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [("nowhere", "nowhere does not exist"), ("", "a folder is needed, or none")],
)
def test_an_adapter_that_is_no_folder_is_refused(
    run: Run, pack: Path, text: Path, given: str, told: str
) -> None:
    for command in COMMANDS:
        ran = run(*words_of(command, pack, given, text))
        assert ran.code == (1 if given else 2)
        assert told in ran.err
        assert ran.err.count("error:") == 1


# -- show ----------------------------------------------------------------------------------------


def on_the_shelf(pack: Path, tmp_path: Path) -> None:
    """The tiny model's pack and another model's."""
    models = tmp_path / "PICOEDGE_HOME" / "models"
    models.mkdir(parents=True)
    (models / "tiny.pico").symlink_to(pack)
    pack_model(shelf_models.write_gguf(tmp_path / "other.gguf"), models / "other.pico")


def test_an_adapter_is_shown_with_the_packs_that_it_fits(
    run: Run, pack: Path, adapter: Path, tmp_path: Path
) -> None:
    on_the_shelf(pack, tmp_path)
    shown = json.loads(run("show", adapter, "--json").out)
    assert shown == {
        "name": "mine",
        "kind": "LoRA adapter",
        "base": "random",
        "path": str(adapter),
        "rank": 4,
        "alpha": 160,
        "targets": ["q_proj", "down_proj"],
        "bytes": sum(file.stat().st_size for file in adapter.iterdir()),
        "identity": read_adapter(adapter).identity,
        "use_rslora": False,
        "adapted_layers": 3,
        "parameters": 3 * 4 * (256 + 192 + 512 + 256),
        "fits": ["tiny"],
        "does_not_fit": {
            "other": "down_proj of layer 0 is 256 x 512 in the adapter, 64 x 96 in the model"
        },
    }
    lines = dict(line.split("  ", 1) for line in run("show", adapter).out.splitlines())
    facts = {name: value.strip() for name, value in lines.items()}
    assert facts["fits"] == "tiny"
    assert facts["does not fit"].startswith("other: down_proj of layer 0 is 256 x 512")
    assert facts["targets"] == "q_proj, down_proj"


def test_a_damaged_pack_on_the_shelf_hides_no_adapter(
    run: Run, pack: Path, adapter: Path, tmp_path: Path
) -> None:
    on_the_shelf(pack, tmp_path)
    (tmp_path / "PICOEDGE_HOME" / "models" / "other.pico" / "picoedge.json").write_text("{")
    shown = json.loads(run("show", adapter, "--json").out)
    assert (shown["fits"], shown["does_not_fit"]) == (["tiny"], {})


def test_show_refuses_what_is_no_sound_adapter(run: Run, adapter: Path) -> None:
    for name, (damage, told) in DAMAGE.items():
        folder = adapter.with_name(name)
        write_adapter(folder, read_adapter(adapter))
        damage(folder)
        ran = run("show", folder)
        assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1), ran.err
        assert told in ran.err or name == "no config"


def test_a_pack_is_shown_as_ever(run: Run, pack: Path) -> None:
    shown = json.loads(run("show", pack, "--json").out)
    assert (shown["packed"], shown["layers"]) == (True, 3)
    assert not {"kind", "fits", "identity"} & shown.keys()
