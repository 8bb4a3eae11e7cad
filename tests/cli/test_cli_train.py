"""`picoedge train`: from a text to a model that chats, through kills, and what it refuses."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from pathlib import Path

import pytest
from cli_runs import Run, process

from picoedge.train.state.checkpoints import Checkpoints

SIZES = ("--preset", "1m", "--batch-size", 4, "--micro-batch", 2, "--length", 64)
OFTEN = ("--steps", 30, "--evaluate-every", 5, "--save-every", 4)


def tales(count: int) -> str:
    """Stories of one form: a model that learned it writes its words in its order."""
    draw = random.Random(1)
    names, animals = ("Anna", "Ben", "Clara"), ("cat", "dog", "bird", "horse")
    return "\n\n".join(
        f"Once upon a time {name} had a {animal}. Every day {name} fed the {animal}. "
        f'"Hello, {animal}!" said {name}. The {animal} was happy.'
        for name, animal in ((draw.choice(names), draw.choice(animals)) for _ in range(count))
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tales.txt"
    path.write_text(tales(400))
    return path


def start(*args: object) -> subprocess.Popen[bytes]:
    words = [str(arg) for arg in ("train", *args)]
    return process(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(child: subprocess.Popen[bytes], beginning: str) -> None:
    """Read what the process tells, until a line begins so."""
    assert child.stderr is not None
    for line in child.stderr:
        if line.decode().startswith(beginning):
            return
    raise AssertionError(f"it ended before it told {beginning!r}")


def ended(child: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = child.communicate(timeout=100)
    return child.returncode, out.decode(), err.decode()


@pytest.fixture(scope="module")
def undisturbed(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "tales.pico"
    code, told, err = ended(start("--text", text, "--out", out, *SIZES, *OFTEN, "--json"))
    assert code == 0, err
    facts = json.loads(told)
    assert facts["steps"] == 30
    assert facts["path"] == str(out)
    return out


@pytest.mark.slow
def test_a_text_becomes_a_model_that_chats(undisturbed: Path) -> None:
    child = process(
        "chat", undisturbed, "-p", "Once upon a time", "-n", "24", "--temperature", "0",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    code, out, err = ended(child)
    assert code == 0, err
    words = set(tales(50).replace('"', "").replace(".", "").replace(",", "").split())
    said = out.replace('"', "").replace(".", "").replace(",", "").split()
    assert len(said) >= 5
    assert sum(word in words for word in said) >= 0.8 * len(said), out


@pytest.mark.slow
def test_the_log_has_what_a_curve_needs(undisturbed: Path) -> None:
    folder = undisturbed.with_name("tales.run")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    held_out = {line["step"]: line["held_out"] for line in lines if "held_out" in line}
    assert len(losses) == 30
    assert losses[-1] < losses[0] - 2
    assert list(held_out) == [0, 5, 10, 15, 20, 25, 30]
    assert held_out[30] < held_out[0] - 2
    assert sum("sample" in line for line in lines) == 6


@pytest.mark.slow
def test_a_run_killed_and_interrupted_ends_with_the_same_bits(
    undisturbed: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tales.pico"
    child = start("--text", text, "--out", out, *SIZES, *OFTEN, "--threads", 1)
    wait_for(child, "step 10:")
    child.send_signal(signal.SIGKILL)
    assert ended(child)[0] == -signal.SIGKILL
    assert not out.exists()

    child = start("--resume", "--out", out, "--threads", 2)
    wait_for(child, "step 15:")
    child.send_signal(signal.SIGINT)
    code, _, err = ended(child)
    assert code == 130
    assert "stopped and saved after step" in err
    assert f"Go on with: picoedge train --resume --out {out} --threads 2" in err
    assert not out.exists()

    code, _, err = ended(start("--resume", "--out", out))
    assert code == 0, err
    ours, theirs = (
        Checkpoints(path.with_name("tales.run") / "checkpoints").path(30).read_bytes()
        for path in (out, undisturbed)
    )
    assert ours == theirs
    for path in undisturbed.glob("*.safetensors"):
        assert (out / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_the_config_file_repeats_a_run_and_a_finished_one_has_nothing_left(
    undisturbed: Path, tmp_path: Path, run: Run
) -> None:
    config, out = undisturbed.with_name("tales.run") / "config.toml", tmp_path / "again.pico"
    plot = tmp_path / "curve.svg"
    ran = run("train", "--config", config, "--out", out, "--plot", plot)
    assert ran.code == 0, ran.err
    for path in undisturbed.glob("*.safetensors"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "again.run" / "config.toml").read_text() == config.read_text()
    assert plot.read_bytes().startswith(b"<?xml")
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "again.run").rglob("*.saf*"))
    ran = run("train", "--resume", "--out", out)
    assert ran.code == 0
    assert "this run is finished" in ran.err
    after = sorted(path.stat().st_mtime_ns for path in (tmp_path / "again.run").rglob("*.saf*"))
    assert after == before
    assert_resumes_only_as_begun(run, out)


def assert_resumes_only_as_begun(run: Run, out: Path) -> None:
    for args, message in (
        (("--steps", 31), "--steps 31 is not the run's, which has 30 (leave out --steps"),
        (("--fast",), "the run was begun without --fast (leave out --fast"),
        (("--kernels", "numpy"), "was trained by the exact kernels, and this is NumPy"),
        (("--minutes", 5), "--minutes is not possible with --resume"),
        (("--config", "x.toml"), "--config and --resume are both given"),
        (("--memory", "20M"), "training takes at least"),
    ):
        ran = run("train", "--resume", "--out", out, *args)
        assert ran.code != 0
        assert message in ran.err
    run_folder = out.with_name(f"{out.stem}.run")
    corpus = next(run_folder.glob("corpus/train-*"))
    data = bytearray(corpus.read_bytes())
    data[5] ^= 1
    corpus.write_bytes(data)
    ran = run("train", "--resume", "--out", out)
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert str(corpus) in ran.err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--out", "x"), 2, "--out x: the name of a pack ends in .pico (like x.pico)"),
        (("--out", "x.pico"), 2, "there is no text to learn from (name it with --text FILE)"),
        (("--out", "x.pico", "--text", "no.txt"), 1, "no.txt"),
        (("--out", "x.pico", "--text", "empty.txt"), 1, "empty.txt"),
        (("--out", "x.pico", "--text", "tiny.txt"), 1, "too small"),
        (("--out", "x.pico", "--text", "binary.txt"), 1, "binary.txt"),
        (("--out", "x.pico", "--text", "t.txt", "--steps", 3, "--minutes", 1), 2, "both given"),
        (("--out", "x.pico", "--text", "t.txt", "--memory", "30M"), 1, "30 MB may be taken"),
        (("--out", "x.pico", "--text", "t.txt", "--length", 40), 2, "a multiple of 16 is"),
        (("--out", "x.pico", "--text", "t.txt", "--plot", "c.gif"), 2, "end in .png or .svg"),
        (("--out", "x.pico", "--text", "t.txt", "--config", "c.toml"), 2, "c.toml"),
        (("--out", "x.pico", "--resume"), 2, "there is no run to resume: no x.run"),
        (("--out", "old.pico", "--text", "t.txt"), 1, "old.pico exists (choose another --out"),
        (("--out", "t.txt/x.pico", "--text", "t.txt"), 1, "t.txt"),
    ],
)
def test_a_run_that_cannot_begin_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    args: tuple[object, ...], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text(tales(20))
    Path("tiny.txt").write_text("Hello.")
    Path("empty.txt").write_text("")
    Path("binary.txt").write_bytes(b"\x7fELF" + bytes(500))
    Path("old.pico").mkdir()
    before = sorted(Path().rglob("*"))
    ran = run("train", *map(str, args))
    assert ran.code == code
    assert message in ran.err
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_a_folder_with_a_run_is_not_begun_anew(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text(tales(20))
    Path("x.run/checkpoints").mkdir(parents=True)
    Path("x.run/checkpoints/step-00000004.safetensors").write_bytes(b"")
    ran = run("train", "--out", "x.pico", "--text", "t.txt")
    assert ran.code == 2
    assert "x.run holds a run already (--resume goes on with it" in ran.err
    ran = run("train", "--out", "x.pico", "--resume")
    assert "there is no run to resume in x.run" in ran.err
