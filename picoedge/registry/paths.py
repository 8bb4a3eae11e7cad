"""The shelf's folder: its place, names of its files, bytes it takes, its locks and errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from picoedge.files import make_folder, storage_errors, take_lock, xdg_folder
from picoedge.store.shards import is_partial

COPY_BYTES = 1 << 20  # at a time: an SD card is at its full speed, and progress is shown often


def shelf_folder(environ: Mapping[str, str]) -> Path:
    """The folder of packs."""
    home = environ.get("PICOEDGE_HOME") or xdg_folder("CACHE", environ)
    return Path(home, "models").absolute()


def source_name(path: Path) -> str:
    """The shelf's name for a file or folder of the user: its stem and a hash of where it is."""
    import hashlib

    where = path.resolve()
    name = where.stem if where.suffix == ".gguf" else where.name
    stem = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:60]
    # "None" stood for bits that were not chosen: packs made before keep their names.
    key = hashlib.blake2b(f"{where}\0None".encode(errors="surrogateescape"), digest_size=4)
    return f"{stem or 'model'}-{key.hexdigest()}"


def is_pack(path: Path) -> bool:
    """Whether `path` is meant as a pack: by its name, or by a manifest in it."""
    return path.suffix == ".pico" or (path / "picoedge.json").is_file()


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of everything in a folder; links are not followed.

    The holes of a pack that is here in part take no room and are not counted.
    """
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    found = [file.lstat() for file in path.rglob("*")]
    if is_partial(path):
        return sum(min(file.st_size, 512 * file.st_blocks) for file in found)
    return sum(file.st_size for file in found)


def remove_tree(path: Path) -> None:
    """Remove a file, link or folder: its name is gone at once, however long the rest takes."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    import shutil  # with bz2 and lzma, 0.6 MB: every process that runs a model imports this file

    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_left(path: Path) -> None:
    """Remove what a removal, or a download, that was killed has left; what fails is tried again."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def as_storage_error(path: Path) -> AbstractContextManager[None]:
    """Turn what the operating system says about `path` into StorageError."""
    return storage_errors(
        path, "free some space or check its permissions; PICOEDGE_HOME names another folder"
    )


@contextmanager
def lock_file(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path` against other processes; `waiting` is called if one has it.

    The file stays: removing it would let two processes lock two files of one name.
    Raises StorageError.
    """
    with as_storage_error(path):
        make_folder(path.parent)
        file = path.open("ab")
    with file:
        if not take_lock(file.fileno()):
            waiting()
            take_lock(file.fileno(), None)
        yield
