"""`picoedge merge`: its report, and what is refused with everything left as it was."""

from __future__ import annotations

import json
import resource
import subprocess
from pathlib import Path

import pytest
import shelf_models
from adapters_material import random_adapter
from cli_runs import GREEDY, Run, process

from picoedge.errors import StorageError
from picoedge.registry.packing import pack_model
from picoedge.store.adapters import write_adapter
from picoedge.store.pack import merged
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import MANIFEST


@pytest.fixture
def adapter(pack: Path, tmp_path: Path) -> Path:
    made = random_adapter(Pack.open(pack).config, ("q_proj", "down_proj"))
    write_adapter(tmp_path / "mine", made)
    return tmp_path / "mine"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    return tmp_path / "new" / "merged.pico"


def perplexity(run: Run, pack: Path, text: Path, *more: str | Path) -> float:
    ran = run("perplexity", pack, "--file", text, "--tokens", "100", "--json", *more)
    assert ran.code == 0, ran.err
    return float(json.loads(ran.out)["perplexity"])


def test_the_report_is_what_perplexity_measures(
    run: Run, pack: Path, adapter: Path, out: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 4)
    words = ["merge", pack, "--adapter", adapter, "-o", out, "-f", text, "--tokens", "100"]
    ran = run(*words, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["tokens"] == 100
    assert report["perplexity_before"] == perplexity(run, pack, text, "--adapter", adapter)
    assert report["perplexity_after"] == perplexity(run, out, text)
    assert report["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert report["adapter"]["name"] == "mine"
    assert report["added"].keys() == report["error"].keys() == {"q", "down"}
    assert all(0.1 < share < 1 for share in report["added"].values())
    assert all(0.001 < share < 0.01 for share in report["error"].values())  # of 8 bits


def test_the_merged_model_says_what_it_says_beside_the_adapter(
    run: Run, pack: Path, adapter: Path, out: Path
) -> None:
    ran = run("merge", pack, "--adapter", adapter, "-o", out, "--bits", "32")
    assert ran.code == 0, ran.err
    table, facts = ran.out.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == ["matrices", "q", "down"]
    assert all(line.endswith(" 0 %") for line in table.splitlines()[1:])  # nothing is rounded
    before, after, merged_line = facts.splitlines()
    assert before.startswith("perplexity  ")
    assert before.endswith(" with the adapter beside the model")
    assert " merged (" in after
    assert merged_line.startswith(f"merged      {out}: ")
    said = [
        run("generate", name, *more, "-p", "hi", "-n", "8", *GREEDY).out
        for name, more in ((pack, ["--adapter", adapter]), (out, []))
    ]
    assert said[0] == said[1]


def test_a_pack_that_exists_is_replaced(run: Run, pack: Path, adapter: Path, out: Path) -> None:
    words = ["merge", pack, "--adapter", adapter, "-o", out, "--tokens", "16"]
    assert run(*words, "--bits", "32").code == 0
    before = Pack.open(out).nbytes
    assert run(*words).code == 0
    assert Pack.open(out).nbytes < before
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def untouched(pack: Path) -> bytes:
    return (pack / MANIFEST).read_bytes()


def test_a_merge_that_cannot_be_written_leaves_all_as_it_was(
    run: Run, pack: Path, adapter: Path, tmp_path: Path
) -> None:
    before = untouched(pack)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "letter").write_text("dear")
    (tmp_path / "file").write_text("x")
    places = {
        "notes": "exists and is not a pack (choose another name)",
        "file": "exists and is not a pack (choose another name)",
        "mine": "exists and is not a pack (choose another name)",
        "file/m.pico": "choose a folder that you may write to",
        "/proc/no/m.pico": "choose a folder that you may write to",
        str(pack): "the merged pack would replace the model (give --out another name)",
    }
    there = sorted(path.name for path in tmp_path.iterdir())
    for place, told in places.items():
        ran = run("merge", pack, "--adapter", adapter, "-o", tmp_path / place)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2 if "replace" in told else 1, "", 1)
        assert told in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == there
    assert (tmp_path / "notes" / "letter").read_text() == "dear"
    assert untouched(pack) == before


@pytest.mark.parametrize("words", [[], ["--adapter", "none"]])
def test_an_adapter_is_needed(run: Run, pack: Path, out: Path, words: list[str]) -> None:
    ran = run("merge", pack, "-o", out, *words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: no adapter to merge (give --adapter FOLDER)\n"


def test_a_text_that_is_none_is_refused_before_anything_is_written(
    run: Run, pack: Path, adapter: Path, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("binary", "missing"):
        ran = run("merge", pack, "--adapter", adapter, "-o", out, "-f", tmp_path / name)
        assert (ran.code != 0, ran.out, ran.err.count("\n")) == (True, "", 1)
        assert name in ran.err
    assert not out.exists()


def test_a_merge_that_cannot_be_measured_is_refused_before_anything_is_written(
    run: Run, pack: Path, adapter: Path, out: Path
) -> None:
    most = Pack.open(pack).config.max_position_embeddings
    for words, told in (
        (["--tokens", str(most + 1)], f"the model knows {most}"),
        (["--tokens", "64", "-c", "32"], "64 tokens, a context of 32"),
        (["--memory", "2M"], "2 MB"),
    ):
        ran = run("merge", pack, "--adapter", adapter, "-o", out, *words)
        assert (ran.code in (1, 2), ran.out, ran.err.count("\n")) == (True, "", 1)
        assert told in ran.err
    assert not out.exists()


def test_a_small_context_takes_fewer_tokens_by_default(
    run: Run, adapter: Path, out: Path, tmp_path: Path
) -> None:
    shelf_models.write_gguf(tmp_path / "short.gguf")  # of 128 tokens
    pack_model(tmp_path / "short.gguf", tmp_path / "short.pico")
    write_adapter(adapter, random_adapter(Pack.open(tmp_path / "short.pico").config))
    words = ["merge", tmp_path / "short.pico", "--adapter", adapter, "-o", out, "--json"]
    for more, count in (([], 128), (["-c", "96"], 96)):
        ran = run(*words, *more)
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["tokens"] == count


def test_a_full_disk_leaves_nothing(pack: Path, adapter: Path, out: Path) -> None:
    """A limit on file sizes makes writes fail half-way, as a full disk does."""
    ended = process(
        "merge", pack, "--adapter", adapter, "-o", out,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    told, error = ended.communicate(timeout=60)
    assert (ended.returncode, told) == (1, b"")
    assert error.startswith(b"error: cannot write below ")
    assert error.count(b"\n") == 1
    assert list(out.parent.iterdir()) == []


def test_a_merge_that_fails_leaves_the_older_pack(
    run: Run, pack: Path, adapter: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["merge", pack, "--adapter", adapter, "-o", out, "--tokens", "16"]
    assert run(*words).code == 0
    before = untouched(out)

    def fail(*args: object) -> None:
        raise StorageError("the disk has failed", "replace it")

    monkeypatch.setattr(merged, "quantize", fail)
    ran = run(*words)
    assert (ran.code, ran.err) == (1, "error: the disk has failed (replace it)\n")
    assert untouched(out) == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]
