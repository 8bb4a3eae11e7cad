"""pull, list, show, rm, pack, verify: what they print, what bad input gets, exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import shelf_models

from picoedge.cli.main import main

ENTRY = """
name = "tiny"
description = "a tiny model"
licence = "MIT"
bytes = {n_bytes}
sha256 = "{sha256}"
memory = "10M"
sources = ["http://127.0.0.1:9/tiny.gguf"]
"""


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return shelf_models.write_gguf(tmp_path_factory.mktemp("gguf") / "x.gguf").read_bytes()


@pytest.fixture
def gguf(tmp_path: Path, gguf_bytes: bytes) -> Path:
    path = tmp_path / "mine.gguf"
    path.write_bytes(gguf_bytes)
    return path


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gguf_bytes: bytes) -> Path:
    """The shelf's folder of a user whose own catalogue has `tiny`; they are in an empty folder."""
    monkeypatch.setenv("PICOEDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    own = tmp_path / "config" / "picoedge" / "models"
    own.mkdir(parents=True)
    digest = hashlib.sha256(gguf_bytes).hexdigest()
    (own / "tiny.toml").write_text(ENTRY.format(n_bytes=len(gguf_bytes), sha256=digest))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return tmp_path / "home" / "models"


Capture = pytest.CaptureFixture[str]


def failure(capsys: Capture, *argv: str) -> tuple[int, str]:
    """Exit code and stderr of a command that must fail in one line and without a traceback."""
    code = main(argv)
    out, err = capsys.readouterr()
    assert code != 0
    assert out == ""
    assert err.startswith("error: ")
    assert err.index("\n") == len(err) - 1
    assert "Traceback" not in err
    return code, err


def place(models: Path, data: bytes) -> None:
    models.mkdir(parents=True, exist_ok=True)
    (models / "tiny.gguf").write_bytes(data)


def test_pull_list_show_verify_rm(models: Path, gguf_bytes: bytes, capsys: Capture) -> None:
    place(models, gguf_bytes)
    for argv in (["pull", "tiny"], ["pull", "tiny"], ["verify", "tiny"]):
        assert main(argv) == 0
    assert "tiny is ready" in capsys.readouterr().out

    assert main(["ls", "--json"]) == 0
    items = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert items["tiny"]["state"] == "packed"
    assert items["tiny"]["bytes"] > 50_000
    assert items["tiny"]["path"] == str(models / "tiny.pico")
    assert items["smollm2-135m"] == {
        **items["smollm2-135m"], "state": "not pulled", "bytes": 98362432, "default": True
    }  # fmt: skip

    assert main(["show", "tiny", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["architecture"] == "llama"
    assert facts["formats"] == {"q8": 55488}
    assert facts["licence"] == "MIT"

    assert main(["rm", "-y", "tiny"]) == 0
    assert "freed" in capsys.readouterr().out
    assert not (models / "tiny.pico").exists()


def test_pull_verify_pack_and_rm_report_as_json(
    models: Path, gguf: Path, gguf_bytes: bytes, capsys: Capture
) -> None:
    def reported(*argv: str) -> dict[str, object]:
        assert main([*argv, "--json"]) == 0
        value: dict[str, object] = json.loads(capsys.readouterr().out)
        return value

    place(models, gguf_bytes)
    pulled = reported("pull", "tiny")
    size = sum(file.stat().st_size for file in (models / "tiny.pico").iterdir())
    assert pulled == {"name": "tiny", "path": str(models / "tiny.pico"), "bytes": size}
    verified = reported("verify", "tiny")
    assert (verified["name"], verified["path"]) == ("tiny", pulled["path"])
    packed = reported("pack", str(gguf), "-o", "x.pico")
    assert (packed["name"], packed["path"]) == ("mine", "x.pico")
    assert packed["bytes"] == sum(file.stat().st_size for file in Path("x.pico").iterdir())
    assert 0.2 < float(str(packed["ratio"])) < 0.6  # f32 in 8 bits, and the files beside
    assert reported("rm", "-y", "tiny") == {"name": "tiny", "bytes": size}
    assert not (models / "tiny.pico").exists()


def test_list_and_show_are_readable(models: Path, gguf: Path, capsys: Capture) -> None:
    assert main(["list"]) == 0
    header, _, second, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "STATE", "SIZE", "MEMORY", "HERE", "LICENCE"]
    assert re.match(r"smollm2-135m +not pulled +93\.8 MB .* Apache-2\.0 +SmolLM2", second)
    assert main(["show", str(gguf)]) == 0
    facts = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert facts["architecture"].strip() == "llama"
    assert facts["licence"].strip() == "MIT"
    assert facts["packed"].strip() == "no"


def test_words_of_a_file_cannot_steer_a_terminal(models: Path, capsys: Capture) -> None:
    shelf_models.write_gguf(Path("x.gguf"), licence="MIT\nname  other\x1b[31m\x07")
    assert main(["pack", "x.gguf", "-o", "x.pico"]) == 0
    about = Path("x.pico/picoedge.json")
    value = {**json.loads(about.read_text()), "name": "a\x1b]0;title\x07\r\nb"}
    about.write_text(json.dumps(value))
    capsys.readouterr()
    for model in ("x.gguf", "x.pico"):
        assert main(["show", model]) == 0
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert shown.replace("\n", "").isprintable()
    assert "MIT name  other[31m" not in shown.splitlines()
    assert next(line for line in shown.splitlines() if line.startswith("licence")).endswith(
        "  MIT name  other[31m"
    )


def test_show_has_the_notes_of_packing(models: Path, gguf: Path, capsys: Capture) -> None:
    assert main(["pack", str(gguf), "-o", "x.pico"]) == 0
    settings = Path("x.pico/tokenizer_config.json")
    values = json.loads(settings.read_text())
    assert "notes" not in shown("x.pico", capsys)
    settings.write_text(json.dumps({**values, "notes": ["n\x1b[1m1"], "warnings": ["w"]}))
    assert shown("x.pico", capsys)["notes"] == ["n\x1b[1m1", "w"]
    assert main(["show", "x.pico"]) == 0
    assert re.search(r"^notes +n\[1m1; w$", capsys.readouterr().out, re.M)
    settings.write_text("{}")
    assert "damaged" in shown("x.pico", capsys)["notes"][0]


def shown(model: str, capsys: Capture) -> dict[str, Any]:
    """The facts of `show`."""
    capsys.readouterr()
    assert main(["show", model, "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_show_without_a_name_is_the_default_model(models: Path, capsys: Capture) -> None:
    assert main(["show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "smollm2-135m"


def test_pack_writes_where_it_is_told(models: Path, gguf: Path, capsys: Capture) -> None:
    assert main(["pack", str(gguf)]) == 0
    assert main(["pack", str(gguf), "-o", "deep/other.pico", "--bits", "4"]) == 0
    out = capsys.readouterr().out
    assert "mine.pico: " in out
    packs = [Path("mine.pico"), Path("deep/other.pico")]
    for pack in packs:
        assert main(["verify", str(pack)]) == 0
    default, four_bits = [(pack / "head.safetensors").stat().st_size for pack in packs]
    assert four_bits < default
    assert not models.exists()


def test_verify_names_what_is_damaged(models: Path, gguf: Path, capsys: Capture) -> None:
    assert main(["pack", str(gguf), "-o", "x.pico"]) == 0
    file = Path("x.pico/layer-000.safetensors")
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    capsys.readouterr()
    code, err = failure(capsys, "verify", "x.pico")
    assert code == 1
    assert "layer-000.safetensors" in err


@pytest.mark.parametrize("command", ["pack", "show", "verify"])
@pytest.mark.parametrize(
    "damage", ["missing", "empty", "not a GGUF", "truncated header", "truncated data", "folder"]
)
def test_damaged_models_are_told(
    models: Path, gguf: Path, capsys: Capture, command: str, damage: str
) -> None:
    data = gguf.read_bytes()
    gguf.unlink()
    if damage == "folder":
        gguf.mkdir()
    elif damage != "missing":
        cut = {"empty": 0, "truncated header": 2000, "truncated data": len(data) - 500}
        gguf.write_bytes(b"PK\3\4" * 99 if damage == "not a GGUF" else data[: cut[damage]])
    code, err = failure(capsys, command, str(gguf))
    assert code == 1
    assert "mine" in err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pull", "tinny"], "did you mean tiny?"),
        (["pull", "ti"], "did you mean tiny?"),
        (["pull", "../tiny"], "is not in the catalogue"),
        (["show", "nothing-like-it"], "picoedge list shows the names"),
        (["pack"], "SOURCE"),
        (["pack", "x", "--bits", "7"], "--bits"),
        (["rm"], "NAME"),
        (["rm", "tiny"], "is not on the shelf"),
        (["rm", "-y", "../../here"], "is not on the shelf"),
        (["rm", "-y", "/proc"], "is not on the shelf"),
        (["list", "--jason"], "--json"),
        (["verify", "--yes"], "--yes"),
    ],
)
def test_a_wrong_command_line_exits_2(
    models: Path, capsys: Capture, argv: list[str], said: str
) -> None:
    code, err = failure(capsys, *argv)
    assert code == 2
    assert said in err


def test_a_broken_catalogue_file_is_named(models: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "config/picoedge/models/bad.toml").write_text("name = 3")
    code, err = failure(capsys, "list")
    assert code == 2
    assert "bad.toml: name is not small letters, digits" in err


def test_pull_offline_says_how_to_place_the_file(models: Path, capsys: Capture) -> None:
    code, err = failure(capsys, "pull", "tiny")
    assert code == 1
    assert str(models / "tiny.gguf") in err


def test_a_wrong_file_placed_by_hand_is_refused(
    models: Path, gguf_bytes: bytes, capsys: Capture
) -> None:
    place(models, gguf_bytes[:-1] + b"!")
    code, err = failure(capsys, "pull", "tiny")
    assert code == 1
    assert "is not tiny" in err
    assert not (models / "tiny.pico").exists()


@pytest.mark.parametrize("home", ["a-file/below", "/proc/no"])
def test_an_unwritable_home_is_told(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, home: str
) -> None:
    Path("a-file").touch()
    monkeypatch.setenv("PICOEDGE_HOME", str(Path(home).absolute()))
    code, err = failure(capsys, "pull", "tiny")
    assert code == 1
    assert "PICOEDGE_HOME" in err


def test_rm_asks_and_a_pipe_is_no_answer(models: Path, gguf_bytes: bytes, capsys: Capture) -> None:
    place(models, gguf_bytes)
    code, err = failure(capsys, "rm", "tiny")
    assert code == 2
    assert "-y" in err
    assert (models / "tiny.gguf").exists()


def run_picoedge(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "picoedge", *argv],
        env=environment, stderr=subprocess.PIPE, text=True, timeout=60, check=False, **options,
    )  # fmt: skip


def test_a_full_disk_leaves_nothing(models: Path, gguf: Path) -> None:
    """A limit on file sizes makes writes fail half-way, as a full disk does."""
    limit = (20_000, 20_000)
    result = run_picoedge(
        "pack", str(gguf), stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("argv", [["list"], ["list", "--json"], ["show"], ["doctor"]])
def test_a_closed_pipe_ends_quietly(models: Path, argv: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = run_picoedge(*argv, stdout=writer)
    os.close(writer)
    assert result.returncode == 1
    assert result.stderr == ""


def test_a_full_output_is_told(models: Path) -> None:
    with open("/dev/full", "w") as full:
        result = run_picoedge("list", stdout=full)
    assert result.returncode == 1
    assert "no space left on device" in result.stderr


def test_list_says_what_fits_here(
    models: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from picoedge.cli import shelf

    monkeypatch.setattr(shelf, "available_bytes", lambda: 1 << 30)
    monkeypatch.setattr(shelf, "cluster_budgets", list)
    assert main(["list", "--json"]) == 0
    here = {item["name"]: item["here"] for item in json.loads(capsys.readouterr().out)}
    assert (here["tiny"], here["qwen3-8b"]) == ("in memory", "streamed")
    assert main(["list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "5.13 GB (estimated)" in lines["qwen3-8b"]
    assert "estimated" not in lines["smollm2-135m"]  # measured
    monkeypatch.setattr(shelf, "cluster_budgets", lambda: [2 << 30] * 4)
    assert main(["list", "--json"]) == 0
    over = {item["name"]: item["cluster"] for item in json.loads(capsys.readouterr().out)}
    assert over["qwen3-8b"] == "in memory"
    assert main(["list"]) == 0
    assert "CLUSTER" in capsys.readouterr().out
    monkeypatch.setattr(shelf, "_disk_room", lambda folder: 1 << 20)
    assert main(["list"]) == 0
    assert "no room on the disk" in capsys.readouterr().out


def test_pull_tells_before_it_fetches_what_must_be_streamed(
    models: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from picoedge.cli import shelf

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(shelf, "available_bytes", lambda: 1 << 30)
    monkeypatch.setattr(shelf, "cluster_budgets", lambda: [2 << 30] * 4)
    assert main(["pull", "qwen3-8b"]) == 1
    err = capsys.readouterr().err
    assert "takes 5.13 GB (estimated) of memory" in err
    assert "will be streamed" in err
    assert "--cluster" in err
