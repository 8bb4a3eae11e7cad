"""Files that are replaced whole or not at all, and failed reads as errors."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from picoedge.errors import DataError, ModelError, PicoedgeError, StorageError
from picoedge.files import reading, replace_file

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
