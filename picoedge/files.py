"""Files: locks, reads and writes that are complete or raise, small text and JSON files.

Reads done in threads: their errors are carried to the waiting thread, and stalls are detected.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from picoedge.errors import MemoryBudgetError, ModelError, PicoedgeError, StorageError, TextError
from picoedge.fields import MOST_VALUES, Fields, TooManyValuesError, parse_json
from picoedge.units import format_size

_LOCK_POLL_S = 0.005  # far below a noticeable delay, and no load while a lock is held for long
_WINDOW = 1 << 20
_XDG = {"CONFIG": ".config", "STATE": ".local/state", "CACHE": ".cache"}
_TEXT_BYTES = 64 << 20
# Of a tokenizer's settings: Llasa adds 65,792 tokens of speech, each with 8 values.
MOST_TOKEN_VALUES = 1 << 20
READ_STALL_S = 30.0  # without a finished read: Linux resets a SCSI disk after as long
_POLL_S = 1.0
_NO_MEMORY = "free some memory, raise the limit (ulimit -v), or give a smaller --memory"


def xdg_folder(kind: str, environ: Mapping[str, str]) -> Path:
    """picoedge's folder for the user's files of a kind: "CONFIG", "STATE" or "CACHE"."""
    base = environ.get(f"XDG_{kind}_HOME") or os.path.join(os.path.expanduser("~"), _XDG[kind])
    return Path(base, "picoedge")


def take_lock(file: int, timeout_s: float | None = 0.0, *, shared: bool = False) -> bool:
    """Lock an open file against other processes, until it is closed.

    False where another process holds it for all of `timeout_s` (None: waits without end). The file
    must stay on the disk: two processes could lock two files of one name. Raises OSError where the
    file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if timeout_s is None:
        fcntl.flock(file, kind)
        return True
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end_s:
                return False
            time.sleep(_LOCK_POLL_S)


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Make `data` the content of `path`; it survives a power cut once this returns.

    It is written beside `path` and renamed: a reader, and a crash, find the old file or the new
    one. Raises OSError that names `path`.
    """
    # Linux numbers threads and processes together: no two that live share the name.
    beside = path.with_name(f".{path.name}.{threading.get_native_id()}.new")
    with suppress(FileNotFoundError):
        beside.unlink()  # of a killed process that had our number
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    sync(path.parent)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder, and the missing ones above it; their names survive a power cut on return.

    `mode` is for each that is made.
    """
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_folder(path.parent, mode)
    with suppress(FileExistsError):  # another process made it just now
        path.mkdir(mode)
    if not path.is_dir():  # a file of that name is in the way
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_at(path: Path, offset: int, nbytes: int) -> bytearray:
    """Bytes [offset, offset + nbytes) of a file. Raises ModelError where the file ends earlier."""
    buffer, got = bytearray(nbytes), 0
    view = memoryview(buffer)
    with reading(path), path.open("rb", buffering=0) as file:
        file.seek(offset)
        while got < nbytes:
            count = file.readinto(view[got:])
            if not count:
                raise ModelError(
                    f"{path} ends at byte {offset + got}, {offset + nbytes} are needed",
                    "the file is truncated or changed while it was read",
                )
            got += count
    return buffer


def digest(path: Path, offset: int, nbytes: int) -> str:
    """blake2b (32 bytes, in hex) of a range of a file."""
    import hashlib  # loads OpenSSL, 4 MB that most runs never need

    hasher = hashlib.blake2b(digest_size=32)
    for start in range(0, nbytes, _WINDOW):
        hasher.update(read_at(path, offset + start, min(_WINDOW, nbytes - start)))
    return hasher.hexdigest()


def source_fingerprint(paths: Sequence[Path]) -> str:
    """Hash of the files' names, sizes and times and of the first one's first MB."""
    import hashlib

    hasher = hashlib.blake2b(digest_size=16)
    for path in paths:
        with reading(path):
            stat = path.stat()
        hasher.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    with reading(paths[0]):
        size = min(_WINDOW, paths[0].stat().st_size)
    hasher.update(read_at(paths[0], 0, size))
    return hasher.hexdigest()


@contextmanager
def reading(path: Path, error: type[PicoedgeError] = ModelError) -> Iterator[None]:
    """Turn a failed read into `error` (missing, no permission, no file) or StorageError."""
    try:
        yield
    except FileNotFoundError as cause:
        raise error(f"{path} does not exist", "check the path") from cause
    except (IsADirectoryError, NotADirectoryError, PermissionError) as cause:
        raise error(f"cannot read {path}: {(cause.strerror or '').lower()}") from cause
    except OSError as cause:
        if cause.errno == errno.ELOOP:
            raise error(f"{path} is a link that leads in a circle") from cause
        raise StorageError(f"reading {path} failed: {cause.strerror or cause}") from cause


@contextmanager
def storage_errors(path: object, hint: str) -> Iterator[None]:
    """Turn what the operating system says about `path` into StorageError."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"{error.filename or path}: {reason}", hint) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to a ModelError that lacks it."""
    try:
        yield
    except ModelError as error:
        if str(path) in error.message:
            raise
        raise type(error)(f"{path}: {error.message}", error.hint) from error


@contextmanager
def writing(folder: Path, needed: int = 0) -> Iterator[None]:
    """Turn a failed write below `folder` into StorageError; the message names `needed` bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(folder, needed) from error
        what = error.strerror or str(error)
        raise StorageError(
            f"cannot write below {folder}: {what}", "choose a folder that you may write to"
        ) from error


def disk_full(folder: Path, needed: int, free: int | None = None) -> StorageError:
    """The error for a disk that cannot hold `needed` bytes, with the figures."""
    free = free_bytes(folder) if free is None else free
    return StorageError(
        f"no room in {folder}: {format_size(needed)} needed, {format_size(free)} free",
        "free some space or choose another folder",
    )


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`, or of its nearest existing parent."""
    for place in (folder, *folder.parents):
        if place.exists():
            status = os.statvfs(place)
            return status.f_bavail * status.f_frsize
    return 0


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; the system may accept less per call."""
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def sync_tree(folder: Path) -> None:
    """fsync a folder and the files in it."""
    for path in (*folder.iterdir(), folder):
        sync(path)


def read_object(path: Path, max_bytes: int, hint: str, most_values: int = MOST_VALUES) -> Fields:
    """Read a file of one JSON object. Raises ModelError with `hint` where it is anything else."""
    with reading(path):
        size = path.stat().st_size
    if size > max_bytes:
        raise ModelError(f"{path} has {size} bytes, at most {max_bytes} are expected", hint)
    return parse_object(read_at(path, 0, size), path, hint, most_values)


def parse_object(
    data: bytes | bytearray, path: Path, hint: str, most_values: int = MOST_VALUES
) -> Fields:
    """Parse one JSON object; `path` is for messages. Raises ModelError."""
    try:
        values = parse_json(data, most_values)
    except TooManyValuesError as error:
        raise ModelError(f"{path} {error}", hint) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} does not hold valid JSON", hint) from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} does not hold a JSON object", hint)
    return Fields(values, path, ModelError, hint)


def read_text_file(path: Path, max_bytes: int = _TEXT_BYTES) -> str:
    """Content of a UTF-8 file. Raises TextError where it is missing, too large or not text."""
    try:
        if path.stat().st_size > max_bytes:
            raise TextError(f"{path} is larger than {max_bytes} bytes", "get a sound copy")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TextError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not text: {error}", "get a sound copy") from error


def read_json_file(path: Path, most_values: int = MOST_TOKEN_VALUES) -> dict[str, Any]:
    """A file's JSON object. Raises TextError as `read_text_file`, and on anything else."""
    try:
        values = parse_json(read_text_file(path), most_values)
    except TooManyValuesError as error:
        raise TextError(f"{path} {error}", "get a sound copy") from error
    except (ValueError, RecursionError) as error:
        raise TextError(f"{path} is not JSON: {error}", "get a sound copy") from error
    if not isinstance(values, dict):
        raise TextError(f"{path} does not hold a JSON object", "get a sound copy")
    return values


def parse_toml(text: str) -> dict[str, Any]:
    """The values in the text of a TOML file. Raises ValueError."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise ValueError("lists inside lists, too deep") from None
    return values


def read_json_if_any(path: Path) -> dict[str, Any]:
    """A file's JSON object, {} where the file does not exist."""
    return read_json_file(path) if path.exists() else {}


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Turn a failed write into StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"writing to {folder} failed: {error.strerror or error}") from error


class StallDetector:
    """Counts polls without a finished read; time while this process was stopped does not count."""

    def __init__(self, stall_s: float) -> None:
        self.poll_s = min(_POLL_S, stall_s)
        self._stall_s, self._idle_s, self._finished = stall_s, 0.0, 0

    def stalled(self, finished: int) -> bool:
        """Whether `finished`, asked once per `poll_s`, has not changed for `stall_s` seconds."""
        self._idle_s = self._idle_s + self.poll_s if finished == self._finished else 0.0
        self._finished = finished
        return self._idle_s >= self._stall_s


def stalled_read(where: str, stall_s: float) -> StorageError:
    """The error for a read at `where` that does not end."""
    return StorageError(
        f"{where}: the storage has not answered for {stall_s:.0f} s",
        "the card or disk is gone or dying: check it, then picoedge verify",
    )


def attempt(work: Callable[[], None], where: str) -> PicoedgeError | None:
    """Do `work` and return its error, for the thread that waits to raise."""
    translated: PicoedgeError
    try:
        work()
    except PicoedgeError as error:
        return error
    except (OSError, MemoryError) as error:
        if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
            translated = no_memory(f"reading {where}")
        else:
            translated = StorageError(f"{where}: reading failed: {error.strerror or error}")
        translated.__cause__ = error
        return translated
    return None


def aborted_read(where: str) -> StorageError:
    """The error for a read whose thread ended by a bug."""
    return StorageError(f"{where}: reading was broken off")


def no_memory(what: str) -> MemoryBudgetError:
    """The error for a failed allocation."""
    return MemoryBudgetError(f"no memory for {what}", _NO_MEMORY)


def start_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread. Raises MemoryBudgetError."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # no memory for its stack, or a limit of threads
        raise no_memory(f"one more thread ({name})") from error
    return thread
