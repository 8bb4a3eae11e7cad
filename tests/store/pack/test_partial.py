"""Packs of which a board holds a part: filled piece by piece, cut anywhere, never used blindly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_source import write_text
from store_models import write_gguf

from picoedge.cli.main import main
from picoedge.errors import ModelError, PicoedgeError, StorageError
from picoedge.registry.details import describe_pack
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.partial import PartialPack, create_partial, pack_folder
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import (
    HELD,
    MANIFEST,
    PackItem,
    Slice,
    Wanted,
    pack_id,
    read_inventory,
    record_head,
)
from picoedge.store.sources.source import open_source
from picoedge.store.window.weights import MappedWeights
from picoedge.units import format_size

SOME = Wanted(Slice(range(1), range(1, 2)))
WORDS = Wanted(Slice(range(0), range(0), range(1, 3)))
NOTHING = Slice(range(0), range(0))


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def sound(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    write_gguf(folder / "m.gguf", "Q4_K", architecture="qwen2", tied=request.param)
    pack_source(open_source(folder / "m.gguf"), folder / "m.pico", write_text=write_text)
    return folder / "m.pico"


@pytest.fixture
def empty(sound: Path, tmp_path: Path) -> Path:
    create_partial(tmp_path / "m.pico", (sound / MANIFEST).read_bytes())
    return tmp_path / "m.pico"


def bytes_of(folder: Path, item: PackItem) -> bytes:
    with (folder / item.file).open("rb") as file:
        file.seek(item.offset)
        return file.read(item.nbytes)


def fill(target: Path, source: Path, wanted: Wanted) -> list[str]:
    with PartialPack(target) as filled:
        items = filled.missing(wanted)
        for item in items:
            filled.write(item, bytes_of(source, item))
    return [item.name for item in items]


def everything(sound: Path) -> Wanted:
    return Wanted(Pack.open(sound).all_shards, embed=True)


def test_a_pack_is_begun_with_nothing_in_it(sound: Path, empty: Path) -> None:
    opened = Pack.open(empty)
    assert (opened.held_bytes, opened.is_whole) == (0, False)
    assert opened.identity == pack_id((sound / MANIFEST).read_bytes())
    assert sum(file.stat().st_blocks for file in empty.glob("*.safetensors")) * 512 < opened.nbytes
    opened.verify()
    assert describe_pack(opened)["shards"]["attention"] == 4


def test_a_slice_needs_its_shards_and_the_vectors(sound: Path) -> None:
    opened = Pack.open(sound)
    names = {item.name for item in opened.needed(SOME)}
    assert {name for name in names if "attention" in name.rpartition("/")[2][:9]} >= {
        "layer-000/attention.000",
        "layer-001/attention.000",
    }
    assert "layer-000/attention.001" not in names
    assert "layer-001/ffn.001" in names
    assert "layer-001/ffn.000" not in names
    assert "head/final_norm" in names
    assert not any(name.startswith(("embed/", "head/head", "tokenizer")) for name in names)


def test_looking_up_words_needs_their_rows_and_texts(sound: Path) -> None:
    opened = Pack.open(sound)
    names = {item.name for item in opened.needed(Wanted(NOTHING, embed=True))}
    tied = opened.config.tie_word_embeddings
    assert "tokenizer.json" in names
    assert ("head/head.000" in names) == tied
    assert ("embed/embed.000" in names) == (not tied)
    assert {item.name for item in opened.needed(everything(sound))} == {
        item.name for item in opened.items()
    }


def test_a_slice_of_the_head_is_its_shards(sound: Path, empty: Path) -> None:
    fill(empty, sound, WORDS)
    opened, whole = Pack.open(empty), Pack.open(sound)
    shards = {item.name for item in opened.needed(WORDS) if "/head." in item.name}
    assert shards == {"head/head.001", "head/head.002"}
    (held,) = MappedWeights(opened, WORDS.part).spans("head", 2)
    assert np.array_equal(held.weights["head"].data, whole.head(range(1, 3)).data)
    with pytest.raises(ModelError, match=r"head\.000"):
        MappedWeights(opened, Slice(range(0), range(0), range(2))).spans("head", 2)


def test_a_slice_that_is_held_runs_and_the_rest_cannot(sound: Path, empty: Path) -> None:
    fill(empty, sound, SOME)
    opened, whole = Pack.open(empty), Pack.open(sound)
    opened.check_held(SOME.part, embed=False)
    assert opened.missing(SOME) == []
    held = MappedWeights(opened, SOME.part)
    for kind in ("attention", "ffn"):
        mine, theirs = held.spans(kind, 1)[0], MappedWeights(whole, SOME.part).spans(kind, 1)[0]
        for name, weights in mine.weights.items():
            assert np.array_equal(weights.data, theirs.weights[name].data)
    assert all(np.array_equal(v, whole.norms(1)[k]) for k, v in opened.norms(1).items())
    opened.verify()
    for touch in (
        lambda: opened.check_held(opened.all_shards, embed=False),
        lambda: MappedWeights(opened).spans("attention", 0),
        lambda: opened.biases(0),
        lambda: MappedWeights(opened).spans("head", 2),
        held.embedding,
        opened.row_reader,
    ):
        with pytest.raises(
            ModelError, match=r"(attention|ffn|head|embed)\.\d+.*a board that has it"
        ):
            touch()


def test_a_filled_pack_is_a_whole_one(sound: Path, empty: Path) -> None:
    first = fill(empty, sound, SOME)
    rest = fill(empty, sound, everything(sound))
    assert not set(first) & set(rest)
    assert not (empty / HELD).exists()
    assert Pack.open(empty).is_whole
    Pack.open(empty).verify()
    for path in sound.iterdir():
        assert path.read_bytes() == (empty / path.name).read_bytes()
    with PartialPack(empty) as again:
        assert again.missing(everything(sound)) == []


def test_bytes_with_another_hash_are_not_written(sound: Path, empty: Path) -> None:
    with PartialPack(empty) as filled:
        item = filled.missing(SOME)[0]
        right = bytes_of(sound, item)
        for wrong in (b"", right[:-1], right + b"\0", bytes(len(right))):
            with pytest.raises(ModelError, match=item.name):
                filled.write(item, wrong)
        assert filled.missing(SOME)[0] == item
    assert bytes_of(empty, item) == bytes(item.nbytes)


def test_wherever_the_record_is_cut_only_whole_lines_count(sound: Path, empty: Path) -> None:
    fill(empty, sound, SOME)
    record = (empty / HELD).read_bytes()
    for cut in (0, 1, len(record) // 2, len(record) - 1):
        for tail in (b"", b"\0" * 40, b"\0\n", b"layer-000/attention.001"):
            (empty / HELD).write_bytes(record[:cut] + tail)
            held = set(record[:cut].decode().split("\n")[1:-1])
            opened = Pack.open(empty)
            assert {i.name for i in opened.needed(SOME)} - held == {
                i.name for i in opened.missing(SOME)
            }
            fill(empty, sound, SOME)
            assert Pack.open(empty).missing(SOME) == []


def test_the_record_of_another_pack_says_nothing(sound: Path, empty: Path) -> None:
    fill(empty, sound, SOME)
    record = (empty / HELD).read_bytes()
    (empty / HELD).write_bytes(record_head("0" * 64) + record.partition(b"\n")[2])
    assert Pack.open(empty).held_bytes == 0
    with PartialPack(empty) as filled:
        assert filled.missing(SOME)
    assert (empty / HELD).read_bytes() == record_head(Pack.open(sound).identity)


FILL = """
import sys
from pathlib import Path
from picoedge.store.pack.partial import PartialPack
target, source = Path(sys.argv[1]), Path(sys.argv[2])
filled = PartialPack(target, sync_bytes=int(sys.argv[3]))
for item in filled.pack.items():
    data = (source / item.file).read_bytes()[item.offset : item.offset + item.nbytes]
    filled.write(item, data)
    print(item.name, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("together", [1, 5])
def test_items_that_were_recorded_before_a_kill_are_held(
    sound: Path, empty: Path, together: int
) -> None:
    at_once = sum(item.nbytes for item in Pack.open(empty).items()[:together])
    command = [sys.executable, "-c", FILL, str(empty), str(sound), str(at_once)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        for _ in range(9):
            process.stdout.readline()
            process.stdin.write(b"\n")
            process.stdin.flush()
        with pytest.raises(StorageError, match="another process"):
            PartialPack(empty)
        process.kill()
    Pack.open(empty).verify()
    with PartialPack(empty) as filled:
        held = len(filled.held)
    assert held in (range(7, 11) if together == 1 else (0, 5, 10))  # another thread records
    fill(empty, sound, everything(sound))
    Pack.open(empty).verify()


def test_no_room_is_told_before_anything_is_fetched(empty: Path) -> None:
    with PartialPack(empty, free=lambda folder: 3 << 20) as filled:
        filled.check_room([])
        with pytest.raises(StorageError, match=r"needed, 3\.0 MiB free|needed, 3"):
            filled.check_room(filled.missing(SOME))


def test_a_pack_is_not_begun_over_anything(sound: Path, empty: Path, tmp_path: Path) -> None:
    manifest = (sound / MANIFEST).read_bytes()
    with pytest.raises(StorageError, match="there already"):
        create_partial(empty, manifest)
    for name in ("m", ".pico", "held.log", "a b.pico", "-\n.pico"):
        with pytest.raises(ModelError, match="name"):
            create_partial(tmp_path / name, manifest)


def test_a_pack_has_its_place_on_the_shelf(sound: Path, empty: Path, tmp_path: Path) -> None:
    mine = Pack.open(empty).identity
    assert pack_folder(tmp_path, "any", mine) == empty
    assert pack_folder(tmp_path, "any", "ab" * 32) == tmp_path / "any.pico"
    assert pack_folder(tmp_path, "m", "ab" * 32) == tmp_path / "m-abababab.pico"
    for name in ("../m", "/etc/m", "a/b", ".m", "", "m\0", "a" * 500):
        with pytest.raises(ModelError, match="name of a pack"):
            pack_folder(tmp_path, name, mine)


def _text(name: str, nbytes: Any = 1) -> Callable[[dict[str, Any]], object]:
    return lambda m: m["text"].update({name: {"bytes": nbytes, "blake2b": "0" * 64}})


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "text up": _text("../evil"),
    "text absolute": _text("/etc/passwd"),
    "text hidden": _text(".bashrc"),
    "text manifest": _text(MANIFEST),
    "text record": _text(HELD),
    "text weights": _text("head.safetensors"),
    "text long": _text("a" * 300),
    "text giant": _text("a", 1 << 60),
    "text large": _text("a", 1 << 40),
    "text negative": _text("a", -1),
    "text float": _text("a", 1.5),
    "file up": lambda m: m["shards"]["head/final_norm"].update(file="../../x"),
    "offset": lambda m: m["shards"]["head/final_norm"].update(offset=1 << 70),
    "bytes": lambda m: m["shards"]["head/final_norm"].update(bytes=-4),
    "hash": lambda m: m["shards"]["head/final_norm"].update(blake2b="zz"),
    "more shards": lambda m: m["shards"].update({"../x": m["shards"]["head/final_norm"]}),
    "layers": lambda m: m["config"].update(num_hidden_layers=10**9),
    "vocabulary": lambda m: m["config"].update(vocab_size=10**12),
    "hidden": lambda m: m["config"].update(hidden_size=2**62),
    "rows": lambda m: m["geometry"].update(head_shard_rows=2**60),
    "types": lambda m: m.update(shards=[1, 2, 3]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_makes_no_pack(sound: Path, tmp_path: Path, name: str) -> None:
    values = json.loads((sound / MANIFEST).read_bytes())
    HOSTILE[name](values)
    with pytest.raises(PicoedgeError):
        create_partial(tmp_path / "m.pico", json.dumps(values).encode())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[" * 10**5, b"\xff" * 99, b" " * (1 << 24) + b" "],
    ids=["empty", "no fields", "deep", "no text", "too long"],
)
def test_bytes_that_are_no_manifest_make_no_pack(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ModelError):
        create_partial(tmp_path / "m.pico", data)
    assert list(tmp_path.iterdir()) == []


def test_an_inventory_is_what_the_pack_is_made_of(sound: Path) -> None:
    manifest = (sound / MANIFEST).read_bytes()
    assert list(read_inventory(manifest, sound).values()) == Pack.open(sound).items()


@pytest.mark.parametrize("name", [n for n in HOSTILE if n.split()[0] in ("text", "file", "types")])
def test_an_inventory_names_no_file_elsewhere(sound: Path, name: str) -> None:
    values = json.loads((sound / MANIFEST).read_bytes())
    HOSTILE[name](values)
    try:
        items = read_inventory(json.dumps(values).encode(), sound)
    except ModelError:
        return
    assert all(os.sep not in item.file and item.file[0] != "." for item in items.values())


def test_a_link_in_place_of_a_file_is_not_written_through(sound: Path, empty: Path) -> None:
    outside = empty.parent / "outside"
    shutil.move(empty / "head.safetensors", outside)
    (empty / "head.safetensors").symlink_to(outside)
    with pytest.raises(StorageError):
        fill(empty, sound, everything(sound))


def test_the_commands_tell_what_is_here(
    sound: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PICOEDGE_HOME", str(tmp_path))
    target = tmp_path / "models" / "m.pico"
    create_partial(target, (sound / MANIFEST).read_bytes())
    fill(target, sound, SOME)
    opened = Pack.open(target)
    assert main(["verify", "m"]) == 0
    assert f"{format_size(opened.held_bytes)} of" in capsys.readouterr().out
    assert main(["show", "m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["held_bytes"] == opened.held_bytes
    assert main(["list", "--json"]) == 0
    item = next(i for i in json.loads(capsys.readouterr().out) if i["name"] == "m")
    assert item["state"] == "in part"
    assert 0 < item["bytes"] < opened.nbytes
    fill(target, sound, everything(sound))
    assert main(["list"]) == 0
    assert "packed" in capsys.readouterr().out.partition("\n")[2].splitlines()[0]
