"""Text of one file, in pieces: its encoding, and the first byte that is not text.

Read are UTF-8, with or without a byte-order mark, and UTF-16 and UTF-32 with one. Anything else is
refused: a wrong guess would train on other characters than those that were written.
"""

from __future__ import annotations

import codecs
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from picoedge.errors import DataError
from picoedge.files import reading

CHUNK_BYTES = 1 << 20
_Decode = Callable[[bytes, str, bool], tuple[str, int]]
_UTF8: tuple[bytes, str, _Decode] = (b"", "UTF-8", codecs.utf_8_decode)
# UTF-32's mark begins with UTF-16's.
_MARKED: tuple[tuple[bytes, str, _Decode], ...] = (
    (codecs.BOM_UTF32_LE, "UTF-32LE", codecs.utf_32_le_decode),
    (codecs.BOM_UTF32_BE, "UTF-32BE", codecs.utf_32_be_decode),
    (codecs.BOM_UTF8, "UTF-8", codecs.utf_8_decode),
    (codecs.BOM_UTF16_LE, "UTF-16LE", codecs.utf_16_le_decode),
    (codecs.BOM_UTF16_BE, "UTF-16BE", codecs.utf_16_be_decode),
)


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A file open for reading, which is no folder, device or pipe. Raises DataError, StorageError.

    A pipe that stands in its place is not waited for. What reading raises is translated too.
    """
    with reading(path, DataError):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise DataError(f"{path} is no regular file", "give files and folders of text")
            yield file


def text_chunks(path: Path) -> Iterator[str]:
    r"""A file's text in pieces, every line end as "\n".

    Raises DataError with the byte at which it is no text, StorageError where the disk fails.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    with open_regular(path) as file:
        for text in _decoded(file, path):
            if translated := newlines.decode(text):
                yield translated
    if rest := newlines.decode("", final=True):
        yield rest


def _decoded(file: BinaryIO, path: Path) -> Iterator[str]:
    data = _read(file)
    mark, encoding, decode = next((form for form in _MARKED if data.startswith(form[0])), _UTF8)
    data, base = data[len(mark) :], len(mark)
    while True:
        chunk = _read(file)
        last = not chunk
        try:
            text, used = decode(data, "strict", last)
        except UnicodeDecodeError as error:
            raise _no_text(path, encoding, base + error.start, data, error.start) from error
        if (at := text.find("\0")) >= 0:
            raise _binary(path, base + len(text[:at].encode(encoding)))
        yield text
        if last:
            return
        base, data = base + used, data[used:] + chunk


def _read(file: BinaryIO) -> bytes:
    """The next bytes, several where a disk gives few at once; b"" at the end."""
    parts, left = [], CHUNK_BYTES
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _no_text(path: Path, encoding: str, place: int, data: bytes, at: int) -> DataError:
    if encoding == "UTF-8" and b"\0" in data:
        return _binary(path, place - at + data.index(b"\0"))
    return DataError(
        f"{path} is not {encoding}: byte {place} (0x{data[at]:02x}) is none of its characters",
        "convert it, as with: iconv -f LATIN1 -t UTF-8 OLD > NEW",
    )


def _binary(path: Path, place: int) -> DataError:
    return DataError(
        f"{path} is not text: byte {place} is zero",
        "leave it out; if it is UTF-16 without a mark: iconv -f UTF-16LE -t UTF-8 OLD > NEW",
    )


def text_lines(path: Path, most: int) -> Iterator[tuple[int, str | None]]:
    """Lines and their numbers, from 1; None for one of more than `most` characters.

    Raises as `text_chunks`.
    """
    number, waiting, size = 1, list[str](), 0
    for chunk in text_chunks(path):
        *ended, rest = chunk.split("\n")
        for line in ended:
            size += len(line)
            yield number, "".join([*waiting, line]) if size <= most else None
            number, size = number + 1, 0
            waiting.clear()
        size += len(rest)
        if size <= most:
            waiting.append(rest)
        else:
            waiting.clear()
    if size:
        yield number, "".join(waiting) if size <= most else None
