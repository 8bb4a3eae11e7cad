"""The catalogue's own files are sound, and unsound ones are refused with file and field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from picoedge.errors import UsageError
from picoedge.registry.catalogue import (
    SourcePart,
    built_in_folder,
    catalogue_folders,
    default_entry,
    is_model_name,
    load_catalogue,
    load_entry,
    parse_entry,
    parse_part,
)

GOOD: dict[str, Any] = {
    "name": "tiny",
    "description": "a tiny model",
    "licence": "Apache-2.0",
    "bytes": 10,
    "sha256": "0" * 64,
    "memory": "250M",
    "sources": ["hf:someone/tiny-GGUF/tiny.Q4_1.gguf", ["wheel:a==1/a/x", "wheel:b==1/b/y"]],
}


def test_the_built_in_catalogue_has_one_free_default() -> None:
    entries = load_catalogue([built_in_folder()])
    assert default_entry(entries).name == "smollm2-135m"
    assert default_entry(entries).licence == "Apache-2.0"
    assert [entry.name for entry in entries.values() if entry.default] == ["smollm2-135m"]


def test_gemma_is_for_the_tests_only() -> None:
    assert "gemma3-270m" not in load_catalogue([built_in_folder()])
    gemma = load_entry(Path(__file__).parents[1] / "data" / "gemma3-270m.toml")
    assert not gemma.default
    assert len(gemma.sources[0]) == 4


def test_sources_are_alternatives_and_lists_are_pieces() -> None:
    entry = parse_entry(GOOD, "tiny.toml")
    assert entry.sources == (
        (SourcePart("hf", "someone/tiny-GGUF", "tiny.Q4_1.gguf"),),
        (SourcePart("wheel", "a==1", "a/x"), SourcePart("wheel", "b==1", "b/y")),
    )
    assert entry.memory_bytes == 250 * 2**20


@pytest.mark.parametrize(
    "text",
    [
        "wheel:a/x",  # no version: the bytes could change under us
        "wheel:a==1",
        "wheel:--index-url==1/x",
        "hf:owner/file",
        "hf:owner/repo/../../x",
        "file:///etc/passwd",
        "ftp://host/x",
        "https://host/a b",
        "",
    ],
)
def test_other_sources_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a source"):
        parse_part(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../evil"),
        ("name", "Tiny"),
        ("name", None),
        ("bytes", 0),
        ("bytes", -1),
        ("bytes", True),
        ("bytes", 1 << 60),
        ("sha256", "abc"),
        ("memory", "lots"),
        ("sources", []),
        ("sources", [[]]),
        ("sources", [3]),
        ("default", "yes"),
    ],
)
def test_a_bad_field_is_named_with_its_file(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=r"tiny\.toml.*" + key):
        parse_entry({**GOOD, key: value}, "tiny.toml")


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"name = \xff")
    with pytest.raises(UsageError, match=r"bad\.toml"):
        load_catalogue([tmp_path])


def test_the_users_own_entries_come_after_ours(tmp_path: Path) -> None:
    folders = catalogue_folders({"XDG_CONFIG_HOME": str(tmp_path)})
    assert folders == [built_in_folder(), tmp_path / "picoedge" / "models"]
    folders[1].mkdir(parents=True)
    text = (built_in_folder() / "smollm2-135m.toml").read_text()
    (folders[1] / "x.toml").write_text(text.replace("Apache-2.0", "other"))
    assert load_catalogue(folders)["smollm2-135m"].licence == "other"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", ".hidden", "a" * 81, "a\n", "A"])
def test_names_that_could_leave_the_shelf_are_none(name: str) -> None:
    assert not is_model_name(name)
