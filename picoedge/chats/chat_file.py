"""One chat's file of records: JSON lines, each on the disk before the append returns.

Whatever interrupts a write (a kill, a power cut, a full disk) leaves at most an incomplete last
line, which reading drops and the next append overwrites.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from picoedge.chats.conversation import Record
from picoedge.fields import check_values
from picoedge.files import sync, take_lock

MAX_BYTES = 64 << 20  # of one file: hundreds of times what a context holds
# Of one record: more than any context holds. Its text and its value take four bytes a character
# each where one character lies beyond the 16-bit ones.
MAX_RECORD_BYTES = 4 << 20
_STEP_NS = 1000
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a FIFO must not wait


class ChatInUseError(Exception):
    """Another process goes on with this chat."""


class ChatFile:
    """An open chat, locked against other processes until `close`."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path, self._fd, self._size = path, fd, size

    @classmethod
    def create(cls, path: Path) -> ChatFile:
        """A new, empty file. Raises FileExistsError, OSError."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        try:
            _lock(fd)
            sync(path.parent)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, 0)

    @classmethod
    def open(cls, path: Path) -> tuple[ChatFile, list[Record]]:
        """A file to go on with, and its records. Raises ChatInUseError, OSError."""
        fd = os.open(path, os.O_RDWR | _FLAGS)
        try:
            if not _lock(fd):
                raise ChatInUseError
            data = _read(fd, MAX_BYTES)
            whole = data.rfind(b"\n") + 1
            file = cls(path, fd, whole)
            if _parse(data[whole:]) is not None:  # only its line end is missing
                file._size = len(data)
                file._write(b"\n")
        except BaseException:
            os.close(fd)
            raise
        return file, list(parse_records(data))

    def append(self, records: Sequence[Record]) -> None:
        """Write records; on the disk when this returns. All or, where it raises OSError, none."""
        lines = [encode_record(record) for record in records]
        whole = b"".join(lines)
        is_read = max(map(len, lines), default=0) <= MAX_RECORD_BYTES
        if not is_read or self._size + len(whole) > MAX_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self.path))
        self._write(whole)

    def _write(self, data: bytes) -> None:
        done = 0
        try:
            os.ftruncate(self._fd, self._size)  # an incomplete line, of an earlier write
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], self._size + done)
            self._keep_order()
            os.fsync(self._fd)
        except BaseException as error:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
            if isinstance(error, OSError):
                error.filename = str(self.path)
            raise
        self._size += len(data)

    def _keep_order(self) -> None:
        """Make this the newest file of its folder, also where the clock has gone back."""
        with os.scandir(self.path.parent) as entries:
            others = [_modified_ns(entry) for entry in entries if entry.name != self.path.name]
        newest = max(others, default=0)
        if os.fstat(self._fd).st_mtime_ns <= newest:
            with suppress(OSError):  # a file system that keeps no times
                os.utime(self._fd, ns=(time.time_ns(), newest + _STEP_NS))

    def close(self) -> None:
        """Let other processes go on with it."""
        os.close(self._fd)


def _modified_ns(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_mtime_ns
    except OSError:  # removed a moment ago
        return 0


def _lock(fd: int) -> bool:
    """False where another process has the lock. A file system without locks has no such process."""
    try:
        return take_lock(fd)
    except OSError:
        return True


def in_use(path: Path) -> bool:
    """Whether a process has the chat open. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        return not _lock(fd)
    finally:
        os.close(fd)


def read_records(path: Path, max_bytes: int = MAX_BYTES) -> list[Record]:
    """The records in the first `max_bytes` of a chat's file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        return list(parse_records(_read(fd, max_bytes)))
    finally:
        os.close(fd)


def _read(fd: int, max_bytes: int) -> bytes:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "not a file")
    parts, left = [], max_bytes
    while left > 0 and (part := os.pread(fd, min(left, 1 << 20), max_bytes - left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def encode_record(record: Record) -> bytes:
    """A record as a line."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace") + b"\n"


def parse_records(data: bytes) -> Iterator[Record]:
    """The records of a file; lines that hold none are passed over."""
    for line in data.split(b"\n"):
        record = _parse(line)
        if record is not None:
            yield record


def _parse(line: bytes) -> Record | None:
    if len(line) > MAX_RECORD_BYTES:
        return None
    try:
        check_values(line)
        value = json.loads(line.decode("utf-8", "replace")) if line.strip() else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
