"""Encodings: what is read, and the byte at which a file is no text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from picoedge.errors import DataError
from picoedge.train.data import decoding
from picoedge.train.data.decoding import text_chunks, text_lines

TEXT = "Zwölf Boxkämpfer\n\n日本 🙂\n"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters and line ends lie across the ends of chunks."""
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 5)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "a.txt"
    path.write_bytes(data)
    return path


def read(path: Path) -> str:
    return "".join(text_chunks(path))


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        b"\x00\x00\xfe\xff" + TEXT.encode("utf-32-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
    ],
    ids=["utf-8", "mark", "utf-16le", "utf-16be", "utf-32le", "utf-32be", "crlf", "cr"],
)
def test_encodings_with_a_mark_are_read(tmp_path: Path, data: bytes) -> None:
    assert read(written(tmp_path, data)) == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Garçon".encode("latin-1"), "is not UTF-8: byte 3 (0xe7) is none of its characters"),
        (b"good text " + b"\xff", "byte 10 (0xff)"),
        ("Ende é".encode()[:-1], "byte 5 (0xc3)"),  # cut short
        ("text".encode("utf-16")[:-1], "is not UTF-16LE: byte 8 (0x74)"),
        (b"\xff\xfe" + b"a\x00" + b"\x00\xd8" + b"b\x00", "is not UTF-16LE: byte 4"),
        ("no mark".encode("utf-16-le"), "is not text: byte 1 is zero"),
        ("é".encode() + b"\0", "is not text: byte 2 is zero"),
        ("ab".encode("utf-16") + b"\0\0", "is not text: byte 6 is zero"),
        (b"\x89P\0G", "is not text: byte 2 is zero"),
    ],
    ids=range(9),
)
def test_other_bytes_are_refused_with_their_place(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = written(tmp_path, data)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert "iconv" in caught.value.hint


def test_lines_are_those_of_newlines_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "one\r\n\ntwo\u2028\x85\x0b more\n".encode())
    assert list(text_lines(path, 100)) == [(1, "one"), (2, ""), (3, "two\u2028\x85\x0b more")]


def test_a_line_too_long_is_not_kept(tmp_path: Path) -> None:
    path = written(tmp_path, b"a" * 30 + b"\n" + b"b" * 20 + b"\n" + b"c" * 21)
    assert list(text_lines(path, 20)) == [(1, None), (2, "b" * 20), (3, None)]


def test_pipes_devices_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", Path("/dev/zero"), tmp_path):
        with pytest.raises(DataError, match=r"no regular file|is a directory"):
            read(path)
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "gone.txt")
