"""Packs that are damaged, changed or hostile."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_models import VOCAB, whole, write_gguf

from picoedge.errors import ModelError, PicoedgeError
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import ModelSource, open_source


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    write_gguf(folder / "m.gguf", "Q4_K", architecture="gemma3", tied=False)
    pack_source(open_source(folder / "m.gguf"), folder / "m.pico", write_text=write_text)
    return folder / "m.pico"


def write_text(source: ModelSource, folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.fixture
def damaged(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "m.pico"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "picoedge.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_runs_of_shards_are_parts_of_the_whole(sound: Path) -> None:
    opened = Pack.open(sound)
    full = whole(opened.mapped("ffn", 1)["gate"], 0)
    rows = opened.mapped("ffn", 1)["gate"].spec.rows
    assert np.array_equal(
        whole(opened.mapped("ffn", 1, range(1, 2))["gate"], 0), full[rows : 2 * rows]
    )
    down = whole(opened.mapped("ffn", 1, range(1))["down"], 1)
    assert np.array_equal(down, whole(opened.mapped("ffn", 1)["down"], 1)[:, :rows])
    head = opened.head(range(2, 5))
    assert (head.count, head.total_rows) == (3, 3 * head.spec.rows)
    start = 2 * head.spec.rows
    expected = whole(opened.head(), 0)[start : start + head.total_rows]
    assert np.array_equal(whole(head, 0), expected)
    assert opened.mapped("attention", 0, range(0))["q"].count == 0


def test_weights_are_read_only_views_of_the_files(sound: Path) -> None:
    opened = Pack.open(sound)
    for array in (
        opened.mapped("attention", 0)["q"].data,
        opened.norms(0)["q_norm"],
        opened.final_norm,
    ):
        assert not array.flags.writeable
        assert not array.flags.owndata


def test_counts_and_sizes(sound: Path) -> None:
    opened = Pack.open(sound)
    assert (opened.n_attention_shards, opened.n_ffn_shards) == (2, 2)
    assert opened.n_head_shards * opened.head().spec.rows >= VOCAB
    assert opened.nbytes == sum(p.stat().st_size for p in sound.glob("*.safetensors"))


def test_a_sound_pack_verifies_with_progress(sound: Path) -> None:
    seen: list[tuple[int, int]] = []
    Pack.open(sound).verify(lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]


def test_one_changed_bit_anywhere_is_found_and_named(damaged: Path) -> None:
    shards = json.loads((damaged / "picoedge.json").read_text())["shards"]
    for name, row in list(shards.items())[::5]:
        path = damaged / row["file"]
        data = bytearray(path.read_bytes())
        at = row["offset"] + row["bytes"] // 2
        data[at] ^= 4
        path.write_bytes(data)
        with pytest.raises(ModelError, match=name):
            Pack.open(damaged).verify()
        data[at] ^= 4
        path.write_bytes(data)
    Pack.open(damaged).verify()


@pytest.mark.parametrize("name", ["picoedge.json", "head.safetensors", "layer-001.safetensors",
                                  "embed.safetensors"])  # fmt: skip
def test_missing_truncated_and_foreign_files_are_named(damaged: Path, name: str) -> None:
    path = damaged / name
    data = path.read_bytes()
    for changed in (data[:-1], data[: len(data) // 2], b"", data + b"\0", b"\xff" * len(data)):
        path.write_bytes(changed)
        if name == "picoedge.json" and changed.endswith(b"\0"):
            continue
        with pytest.raises(ModelError, match=name):
            Pack.open(damaged)
    path.unlink()
    with pytest.raises(ModelError, match=name):
        Pack.open(damaged)
    path.mkdir()
    with pytest.raises(PicoedgeError, match=name):
        Pack.open(damaged)


def test_a_header_that_disagrees_is_refused(damaged: Path) -> None:
    path = damaged / "layer-000.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"ffn.001"', b'"ffn.009"', 1))
    with pytest.raises(ModelError, match=r"layer-000\.safetensors"):
        Pack.open(damaged)


def test_a_file_cut_after_opening_is_refused_before_it_is_mapped(damaged: Path) -> None:
    opened = Pack.open(damaged)
    path = damaged / "layer-000.safetensors"
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(ModelError, match=r"layer-000\.safetensors"):
        opened.mapped("ffn", 0)


def test_a_place_that_is_no_pack(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ModelError, match="not a pack"):
            Pack.open(path)


def set_at(*path: Any) -> Callable[[dict[str, Any]], None]:
    """A change that puts the last item at the place the others lead to."""

    def change(values: dict[str, Any]) -> None:
        place: Any = values
        for key in path[:-2]:
            place = place[key]
        place[path[-2]] = path[-1]

    return change


SHARD = ("shards", "layer-000/ffn.000")
HOSTILE = {
    "another format": set_at("format", "zip"),
    "a later version": set_at("version", 2),
    "version of text": set_at("version", "1"),
    "config of text": set_at("config", "llama"),
    "unknown architecture": set_at("config", "architecture", "gpt2"),
    "unknown field": set_at("config", "surprise", 1),
    "absurd layers": set_at("config", "num_hidden_layers", 2**31 - 1),
    "fewer layers": set_at("config", "num_hidden_layers", 1),
    "absurd vocabulary": set_at("config", "vocab_size", 2**31 - 1),
    "absurd width": set_at("config", "hidden_size", 2**31 - 1),
    "zero heads": set_at("config", "num_attention_heads", 0),
    "absurd heads": set_at("config", "num_key_value_heads", 2**30),
    "epsilon of text": set_at("config", "rms_norm_eps", "0"),
    "infinite theta": set_at("config", "rope_theta", float("inf")),
    "a window in no layer": set_at("config", "windowed_layers", [99]),
    "divisors of another size": set_at("config", "rope_scaling", "freq_factors", [1.0]),
    "a divisor of zero": set_at("config", "rope_scaling", "freq_factors", [0.0] * 32),
    "a ramp of no width": set_at(
        "config",
        "rope_scaling",
        {
            "kind": "llama3",
            "factor": 8.0,
            "low_freq_factor": 4.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "freq_factors": [],
        },
    ),
    "unknown scaling": set_at("config", "rope_scaling", "kind", "yarn"),
    "tied after all": set_at("config", "tie_word_embeddings", True),
    "zero width shards": set_at("geometry", "ffn_shard_cols", 0),
    "uneven shards": set_at("geometry", "ffn_shard_cols", 96),
    "negative rows": set_at("geometry", "head_shard_rows", -16),
    "uneven rows": set_at("geometry", "head_shard_rows", 17),
    "layers of text": set_at("layers", "many"),
    "a layer too few": lambda values: values["layers"].pop(),
    "unknown format": set_at("layers", 0, "ffn", "matrices", "up", "format", "q3"),
    "another format than stored": set_at("layers", 0, "ffn", "matrices", "up", "format", "q8"),
    "an offset moved": set_at("layers", 0, "ffn", "matrices", "up", "offset", 64),
    "rows changed": set_at("layers", 0, "attention", "matrices", "q", "rows", 2**40),
    "a matrix missing": lambda values: values["layers"][0]["ffn"]["matrices"].pop("up"),
    "no embedding": set_at("embed", None),
    "another embedding": set_at("embed", "Q8_0"),
    "unknown embedding": set_at("embed", "../x"),
    "a file elsewhere": set_at(*SHARD, "file", "../../etc/passwd"),
    "a shard elsewhere": set_at(*SHARD, "offset", 2**60),
    "a negative place": set_at(*SHARD, "offset", -1),
    "a shard longer": set_at(*SHARD, "bytes", 2**60),
    "a hash of text": set_at(*SHARD, "blake2b", "xyz"),
    "no hash": set_at(*SHARD, "blake2b", None),
    "a shard missing": lambda values: values["shards"].pop("layer-000/ffn.000"),
    "a shard too many": set_at("shards", "layer-000/ffn.999", {}),
    "a text elsewhere": set_at("text", "../x", {"bytes": 1, "blake2b": "0" * 64}),
    "a text of negative size": set_at("text", "x", {"bytes": -1, "blake2b": "0" * 64}),
    "texts of text": set_at("text", "x"),
    "source of text": set_at("source", "x"),
    "a name of numbers": set_at("name", 3),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_description_gets_one_clear_error(damaged: Path, case: str) -> None:
    rewrite(damaged, HOSTILE[case])
    with pytest.raises(ModelError) as caught:
        Pack.open(damaged)
    assert str(damaged) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"7", b"[" * 200_000, b"\xff\xfe{}"])
def test_a_description_that_is_none(damaged: Path, content: bytes) -> None:
    (damaged / "picoedge.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"picoedge\.json"):
        Pack.open(damaged)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in a JSON document, itself first."""
    children = value.items() if isinstance(value, dict) else enumerate(value) \
        if isinstance(value, list) else ()  # fmt: skip
    return [path, *(found for key, child in children for found in leaves(child, (*path, key)))]


anything = st.none() | st.booleans() | st.integers(-9, 9) | st.just(2**63) | st.floats() \
    | st.text(max_size=3) | st.just([]) | st.just({}) | st.just([{}])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_of_the_description_is_refused_or_harmless(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    values = json.loads((sound / "picoedge.json").read_text())
    places = [p for p in leaves(values) if p]
    place = data.draw(st.sampled_from(places))
    changed = copy.deepcopy(values)
    set_at(*place, data.draw(anything))(changed)
    folder = tmp_path_factory.getbasetemp() / "changed.pico"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder, copy_function=_link)
    (folder / "picoedge.json").unlink()
    (folder / "picoedge.json").write_text(json.dumps(changed))
    try:
        opened = Pack.open(folder)
    except PicoedgeError:
        return
    assert whole(opened.head(), 0).shape[1] == opened.config.hidden_size


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
