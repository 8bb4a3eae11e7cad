"""Files that are replaced whole or not at all, and failed reads as errors."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from picoedge.errors import DataError, ModelError, PicoedgeError, StorageError, TextError
from picoedge.files import read_json_file, read_object, reading, replace_file
from picoedge.text.tokenizer.base import MOST_JSON_VALUES

WAIT_S = 20.0


def test_two_threads_replace_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fsync = tmp_path / "roster.json", os.fsync
    both, failures = threading.Barrier(2), list[OSError]()

    def wait(file: int) -> None:
        """Until both threads have written, and until both have renamed."""
        both.wait(WAIT_S)
        fsync(file)

    def replace(data: bytes) -> None:
        try:
            replace_file(path, data)
        except OSError as error:
            failures.append(error)
            both.abort()

    monkeypatch.setattr(os, "fsync", wait)
    threads = [threading.Thread(target=replace, args=(data * 1000,)) for data in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert failures == []
    assert path.read_bytes() in (b"a" * 1000, b"b" * 1000)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ModelError, DataError])
def test_a_failed_read_is_an_error_of_the_class_asked_for(
    tmp_path: Path, error: type[PicoedgeError]
) -> None:
    circle, missing = tmp_path / "circle", tmp_path / "missing"
    circle.symlink_to(circle)
    for path, told in (
        (missing, "does not exist"),
        (tmp_path, "cannot read .*: is a directory"),
        (circle, "a link that leads in a circle"),
    ):
        with pytest.raises(error, match=told), reading(path, error):
            path.read_bytes()
    with pytest.raises(StorageError, match=r"reading .* failed: Input/output"), reading(missing):
        raise OSError(5, "Input/output error")


def test_a_tokenizer_of_a_quarter_of_a_million_tokens_and_twice_the_merges_is_read(
    tmp_path: Path,
) -> None:
    model = {
        "vocab": {f"▁w{i}": i for i in range(262_144)},
        "merges": [["▁w", str(i)] for i in range(514_906)],
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": model}, ensure_ascii=False), encoding="utf-8")
    assert read_json_file(path, MOST_JSON_VALUES) == {"model": model}
    with pytest.raises(TextError, match=r"tokenizer\.json holds more than 1048576 values"):
        read_json_file(path)


def test_an_object_of_many_small_values_is_refused_with_its_remedy(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [' + "[]," * 200_000 + "[]]}")
    with pytest.raises(ModelError) as refused:
        read_object(path, 1 << 20, "get it again")
    assert (refused.value.message, refused.value.hint) == (
        f"{path} holds more than 131072 values", "get it again",
    )  # fmt: skip
    assert len(read_object(path, 1 << 20, "", 500_000).values["a"]) == 200_001
