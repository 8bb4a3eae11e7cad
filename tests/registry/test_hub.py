"""Which files of a repository are a model, by its listing; hostile listings."""

from __future__ import annotations

from typing import Any

import pytest
from hub_site import entry_of

from picoedge.errors import DownloadError, PicoedgeError, UsageError
from picoedge.registry.catalogue import is_model_name
from picoedge.registry.hub import HubName, choose_files, parse_hub_name, parse_listing


def chosen(text: str, *paths: str) -> list[str]:
    files = parse_listing([entry_of(path, path.encode()) for path in paths], "here")
    return [file.path for file in choose_files(parse_hub_name(text), files).files]


BARTOWSKI = [f"M-{quant}.gguf" for quant in ("IQ2_M", "Q2_K", "Q4_0", "Q4_K_S", "Q4_K_M", "Q8_0")]
PARTS = [f"Q8_0/M-Q8_0-0000{i}-of-00002.gguf" for i in (1, 2)]
MERGES = ["config.json", "vocab.json", "merges.txt", "model.safetensors"]
FOLDER = ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"]


@pytest.mark.parametrize(
    ("text", "paths", "expected"),
    [
        ("o/r", BARTOWSKI, ["M-Q4_K_M.gguf"]),
        ("o/r:q8_0", BARTOWSKI, ["M-Q8_0.gguf"]),
        ("o/r:Q4_0", ["M-Q4_0_8_8.gguf", "M-Q4_0.gguf"], ["M-Q4_0.gguf"]),
        ("o/r", ["m-q8_0.gguf", "m-f16.gguf"], ["m-q8_0.gguf"]),
        ("o/r", ["M.Q4_0.gguf", "M.Q8_0.gguf"], ["M.Q4_0.gguf"]),
        ("o/r", ["only.gguf", "README.md"], ["only.gguf"]),
        ("o/r", ["M-Q4_K_M.gguf", "mmproj-M-Q4_K_M.gguf"], ["M-Q4_K_M.gguf"]),
        ("o/r:Q8_0", [*reversed(PARTS), "M-Q4_0.gguf"], PARTS),
        ("o/r:UD-Q4_K_XL", ["M-UD-Q4_K_XL.gguf", "M-Q4_K_M.gguf"], ["M-UD-Q4_K_XL.gguf"]),
        ("o/r:BF16", ["BF16/M-BF16-00001-of-00001.gguf"], ["BF16/M-BF16-00001-of-00001.gguf"]),
        ("o/r", [*FOLDER, "README.md", "onnx/model.onnx"], FOLDER),
        ("o/r", [*MERGES, "README.md"], MERGES),
        ("o/r", [*FOLDER, "original/consolidated.safetensors", "consolidated.safetensors"], FOLDER),
    ],
)
def test_the_files_of_a_model(text: str, paths: list[str], expected: list[str]) -> None:
    assert sorted(chosen(text, *paths)) == sorted(expected)


@pytest.mark.parametrize(
    ("text", "paths", "message", "hint"),
    [
        ("o/r:Q5_K_M", BARTOWSKI, "no Q5_K_M", "Q4_K_M"),
        ("o/r", ["a.gguf", "b.gguf"], "several models", "a"),
        ("o/r", ["README.md"], "neither", "GGUF"),
        ("o/r", ["config.json", "vocab.json", "model.safetensors"], "no tokenizer", "GGUF"),
        ("o/r:Q4_0", FOLDER, "no Q4_0", "o/r-GGUF"),
        ("o/r:Q8_0", PARTS[1:], "lacks parts", ""),
    ],
)
def test_a_file_that_is_not_there_is_an_error_with_a_remedy(
    text: str, paths: list[str], message: str, hint: str
) -> None:
    with pytest.raises(DownloadError, match=message) as caught:
        chosen(text, *paths)
    assert hint in caught.value.hint


@pytest.mark.parametrize("text", ["o", "o/", "/r", "o/r:", "o/r/x", "../r", "o/..", "o/r:a/b",
                                  "https://huggingface.co/o/r", "o/r:\x1b[31m", "ö/r"])  # fmt: skip
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="not a repository"):
        parse_hub_name(text)


@pytest.mark.parametrize("text", ["Qwen/Qwen3-0.6B-GGUF", "hf:a/b:Q4_K_M", f"{'o' * 90}/{'r' * 90}",
                                  "_x/_y:UD-Q4_K_XL"])  # fmt: skip
def test_every_repository_has_a_name_on_the_shelf(text: str) -> None:
    name = parse_hub_name(text)
    assert is_model_name(name.shelf_name(name.quant or "Q4_K_M"))
    assert HubName("a/b").stem != HubName("b/a").stem


SOUND = entry_of("m-Q4_0.gguf", b"x")
HOSTILE: dict[str, Any] = {
    "an object": {"error": "no"},
    "text": "no",
    "an entry of text": ["no"],
    "a path up": [{**SOUND, "path": "../m-Q4_0.gguf"}],
    "an absolute path": [{**SOUND, "path": "/etc/m-Q4_0.gguf"}],
    "control characters": [{**SOUND, "path": "m\x1b[31m-Q4_0.gguf"}],
    "a negative size": [{**SOUND, "size": -1}],
    "a size of text": [{**SOUND, "size": "1"}],
    "an absurd size": [{**SOUND, "lfs": {**SOUND["lfs"], "size": 1 << 60}}],
    "a hash that is none": [{**SOUND, "lfs": {**SOUND["lfs"], "oid": "0" * 63}}],
    "no hash at all": [{**SOUND, "lfs": None, "oid": None}],
    "another hash": [{**SOUND, "lfs": None, "oid": "xyz"}],
    "the same path twice": [SOUND, SOUND],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_listings(case: str) -> None:
    with pytest.raises(DownloadError) as caught:
        choose_files(HubName("o/r"), parse_listing(HOSTILE[case], "the listing"))
    assert isinstance(caught.value, PicoedgeError)
    assert "\x1b" not in caught.value.message
