"""MODEL to pack: packed once, packed again, refused, and safe between processes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import shelf_models

from picoedge.errors import DownloadError, ModelError, StorageError, UsageError
from picoedge.registry.catalogue import CatalogueEntry, FetchSettings, SourcePart
from picoedge.registry.details import describe
from picoedge.registry.paths import lock_file, shelf_folder, source_name
from picoedge.registry.shelf import Shelf
from picoedge.store.pack.reader import Pack


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return shelf_models.write_gguf(tmp_path_factory.mktemp("gguf") / "x.gguf").read_bytes()


@pytest.fixture
def gguf(tmp_path: Path, gguf_bytes: bytes) -> Path:
    path = tmp_path / "My Model.gguf"
    path.write_bytes(gguf_bytes)
    return path


@pytest.fixture
def shelf(tmp_path: Path, gguf_bytes: bytes) -> Shelf:
    """A shelf whose catalogue has one model that cannot be fetched."""
    digest = hashlib.sha256(gguf_bytes).hexdigest()
    nowhere = (SourcePart("url", "http://127.0.0.1:9/tiny.gguf"),)
    tiny = CatalogueEntry("tiny", "", "MIT", len(gguf_bytes), digest, 0, (nowhere,), default=True)
    return Shelf(tmp_path / "shelf", {"tiny": tiny}, FetchSettings())


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*"))


def test_a_file_is_packed_once(shelf: Shelf, gguf: Path) -> None:
    seen: list[str] = []
    first = shelf.open(str(gguf), lambda what, done, total: seen.append(what)).path
    assert set(seen) == {"packing My Model"}
    assert first.name.startswith("my-model-")
    before = first.stat().st_ino
    assert shelf.open(str(gguf)).path == first == shelf.find(str(gguf))
    assert first.stat().st_ino == before
    Pack.open(first).verify()


def test_a_name_on_the_shelf_is_a_model_too(shelf: Shelf, gguf: Path) -> None:
    pack = shelf.open(str(gguf)).path
    assert shelf.open(pack.stem).path == pack


def test_a_folder_is_packed_under_its_name(shelf: Shelf, tmp_path: Path) -> None:
    folder = shelf_models.write_folder(tmp_path / "Tiny-0.5B")
    assert shelf.open(str(folder)).path.name.startswith("tiny-0.5b-")


def test_another_models_tokenizer_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    folder = shelf_models.write_folder(tmp_path / "hf")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zz"] = 256  # one more than the embedding has rows
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="its tokenizer has 257 tokens, its embedding 256"):
        shelf.open(str(folder))
    assert visible(shelf.folder) == []


def test_a_pack_is_taken_as_it_is(shelf: Shelf, gguf: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.pico"
    shelf.open(str(gguf)).path.rename(elsewhere)
    assert shelf.open(str(elsewhere)).path == elsewhere
    assert visible(shelf.folder) == []


def test_a_source_that_changed_is_packed_again(shelf: Shelf, gguf: Path) -> None:
    pack = shelf.open(str(gguf)).path
    old = Pack.open(pack).source["fingerprint"]
    shelf_models.write_gguf(gguf, seed=2)
    assert shelf.open(str(gguf)).path == pack
    assert Pack.open(pack).source["fingerprint"] != old


def test_a_damaged_pack_is_packed_again(shelf: Shelf, gguf: Path) -> None:
    pack = shelf.open(str(gguf)).path
    (pack / "picoedge.json").write_text("{")
    shelf.open(str(gguf))
    Pack.open(pack).verify()


def test_a_source_that_is_gone_names_its_pack(shelf: Shelf, gguf: Path) -> None:
    pack = shelf.open(str(gguf)).path
    gguf.unlink()
    with pytest.raises(ModelError, match="does not exist") as caught:
        shelf.open(str(gguf))
    assert pack.stem in caught.value.hint


def test_a_truncated_file_leaves_nothing(shelf: Shelf, gguf: Path) -> None:
    gguf.write_bytes(gguf.read_bytes()[:-1000])
    with pytest.raises(ModelError):
        shelf.open(str(gguf))
    assert visible(shelf.folder) == []


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("tinny", UsageError),
        ("", UsageError),
        ("missing.gguf", ModelError),
        ("./missing", ModelError),
        ("../shelf/tiny", ModelError),
        ("a\0b", UsageError),
    ],
)
def test_a_name_that_is_no_model_is_told_as_such(
    shelf: Shelf, model: str, error: type[Exception]
) -> None:
    for look_up in (shelf.open, shelf.find):
        with pytest.raises(error):
            look_up(model)


def test_a_near_miss_is_named(shelf: Shelf) -> None:
    with pytest.raises(UsageError, match="did you mean tiny"):
        shelf.open("tinny")


def test_a_file_placed_by_hand_is_packed_and_removed(shelf: Shelf, gguf_bytes: bytes) -> None:
    shelf.folder.mkdir()
    (shelf.folder / "tiny.gguf").write_bytes(gguf_bytes)
    assert [item.state for item in shelf.items()] == ["fetched"]
    assert shelf.open(None).path == shelf.folder / "tiny.pico"
    assert visible(shelf.folder) == ["tiny.pico"]
    assert [item.state for item in shelf.items()] == ["packed"]


def test_offline_says_what_is_lacking_and_where_to_place_it(shelf: Shelf) -> None:
    with pytest.raises(DownloadError) as caught:
        shelf.open("tiny")
    assert "127.0.0.1:9" in caught.value.message
    assert str(shelf.folder / "tiny.gguf") in caught.value.hint
    assert visible(shelf.folder) == []


@pytest.mark.parametrize("where", ["file/models", "/proc/no/models"])
def test_an_unwritable_shelf_is_a_storage_error(tmp_path: Path, gguf: Path, where: str) -> None:
    (tmp_path / "file").touch()
    shelf = Shelf(tmp_path / where, {}, FetchSettings())
    with pytest.raises(StorageError) as caught:
        shelf.open(str(gguf))
    assert "PICOEDGE_HOME" in caught.value.hint


def test_two_processes_pack_one_file(gguf: Path, tmp_path: Path) -> None:
    code = "import sys; from picoedge.registry.shelf import Shelf; "
    code += "print(Shelf.from_environment().open(sys.argv[1]).path)"
    environment = {
        **os.environ,
        "PICOEDGE_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(gguf)], env=environment, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=60)[0].decode().strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0] == answers[1]
    Pack.open(Path(answers[0])).verify()
    assert len(visible(tmp_path / "home" / "models")) == 1


def test_the_second_caller_waits_and_packs_nothing(shelf: Shelf, gguf: Path) -> None:
    name, waiting, seen = source_name(gguf), threading.Event(), []

    def progress(what: str, done: int, total: int) -> None:
        seen.append(what)
        waiting.set()

    second = threading.Thread(target=lambda: shelf.open(str(gguf), progress=progress).path)
    with lock_file(shelf.folder / f".{name}.lock", lambda: None):
        second.start()
        assert waiting.wait(30)
        other = Shelf(shelf.folder / "other", {}, FetchSettings()).open(str(gguf)).path
        other.rename(shelf.folder / other.name)
    second.join(30)
    assert seen == [f"waiting for the process that has {name}"]


def test_remove_takes_what_is_on_the_shelf_and_nothing_else(shelf: Shelf, gguf: Path) -> None:
    pack = shelf.open(str(gguf)).path
    assert shelf.remove(pack.stem) > 0
    assert visible(shelf.folder) == []
    assert gguf.exists()
    outside = gguf.with_suffix(".pico")
    outside.mkdir()
    for name in (pack.stem, "tiny", "../My Model", str(outside), "..", "", "*"):
        with pytest.raises(UsageError, match="is not on the shelf"):
            shelf.remove(name)
    assert outside.exists()


def test_a_link_on_the_shelf_is_removed_not_followed(shelf: Shelf, gguf: Path) -> None:
    kept = gguf.with_suffix(".pico")
    shelf.open(str(gguf)).path.rename(kept)
    (shelf.folder / "link.pico").symlink_to(kept)
    shelf.remove("link")
    Pack.open(kept).verify()


def test_show_has_the_same_facts_before_and_after_packing(shelf: Shelf, gguf: Path) -> None:
    before, pack = describe(shelf, str(gguf)), shelf.open(str(gguf)).path
    after = describe(shelf, str(gguf))
    assert not before["packed"]
    assert after["packed"]
    for key in ("architecture", "layers", "hidden_size", "context", "vocab_size", "licence"):
        assert before[key] == after[key], key
    assert after["licence"] == "MIT"
    assert after["tokenizer"] == "byte-level BPE"
    assert after["shards"] == {"attention": 2, "ffn": 3, "head": Pack.open(pack).n_head_shards}
    assert describe(shelf, "tiny")["licence"] == "MIT"


def test_show_does_not_hide_a_damaged_pack(shelf: Shelf, gguf_bytes: bytes) -> None:
    shelf.folder.mkdir()
    (shelf.folder / "tiny.gguf").write_bytes(gguf_bytes)
    pack = shelf.open("tiny").path
    (pack / "head.safetensors").unlink()
    with pytest.raises(ModelError, match=r"head\.safetensors"):
        describe(shelf, "tiny")


def test_the_folder_follows_the_environment(tmp_path: Path) -> None:
    home, there = {"HOME": str(tmp_path)}, tmp_path / "there"
    assert shelf_folder({**home, "PICOEDGE_HOME": str(there)}) == there / "models"
    assert shelf_folder({**home, "XDG_CACHE_HOME": str(there)}) == there / "picoedge" / "models"
    assert shelf_folder({}).parts[-3:] == (".cache", "picoedge", "models")


def test_the_shelf_is_this_users(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOEDGE_HOME", str(tmp_path / "home"))
    assert Shelf.from_environment().open(str(gguf)).path.parent == tmp_path / "home" / "models"
