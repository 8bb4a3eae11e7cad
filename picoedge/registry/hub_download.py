"""A model of a Hugging Face hub, fetched into a folder: each file whole and checked, or none.

The folder is hidden beside the pack that is made of it. An interrupted download is gone on with:
finished files have their own names, and begun ones the name of what they are to become.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from pathlib import Path

from picoedge.errors import DownloadError
from picoedge.files import make_folder, sync
from picoedge.progress import Progress
from picoedge.registry.catalogue import FetchSettings
from picoedge.registry.download import hash_file, require_space
from picoedge.registry.http import HttpFetch, fetch_json
from picoedge.registry.hub import (
    MAX_FILES,
    HubChoice,
    HubFile,
    HubName,
    choose_files,
    parse_listing,
)
from picoedge.registry.paths import as_storage_error, remove_tree

_PAGES = 64
_PACK_SHARE = {True: 0.6, False: 1.1}  # of a pack, in its source's bytes; True: floats become q8


def look_up(name: HubName, how: FetchSettings) -> HubChoice:
    """The files of a model by the hub's own record. Raises DownloadError."""
    base = how.hf_endpoint.rstrip("/")
    url = f"{base}/api/models/{name.repo}/tree/main?recursive=1"
    files: list[HubFile] = []
    for _ in range(_PAGES):
        page, url = fetch_json(url, how)
        files += parse_listing(page, f"the listing of {name.repo}")
        if not url or len(files) > MAX_FILES:
            return choose_files(name, files)
        if not url.startswith(f"{base}/"):
            raise DownloadError(f"the listing of {name.repo} goes on elsewhere: {url[:80]}")
    raise DownloadError(f"the listing of {name.repo} does not end")


def fetch_choice(choice: HubChoice, folder: Path, progress: Progress, how: FetchSettings) -> Path:
    """Fetch all files into `folder`; the path to pack. Raises DownloadError, StorageError."""
    with as_storage_error(folder):
        make_folder(folder)
        places = {file: _places(folder, file) for file in choice.files}
        if len({place[1] for place in places.values()}) < len(places):
            raise DownloadError(f"{choice.name.repo} has two files of one name")
        _remove_others(folder, {path for pair in places.values() for path in pair})
        have = sum(p.stat().st_size for pair in places.values() for p in pair if p.exists())
    pack_bytes = int(_PACK_SHARE[choice.is_folder] * choice.n_bytes)
    require_space(folder, choice.n_bytes - have + pack_bytes)
    done = 0
    for file, (part, target) in places.items():
        if not target.exists():
            _fetch_file(choice, file, part, done, progress, how)
            with as_storage_error(folder):
                os.replace(part, target)
        done += file.n_bytes
    return folder if choice.is_folder else places[choice.files[0]][1]


def _places(folder: Path, file: HubFile) -> tuple[Path, Path]:
    """Where a file is while it arrives, and once it has been checked."""
    name, digest = file.path.rpartition("/")[2], file.sha256 or file.git_sha1
    return folder / f".{digest[:16]}.part", folder / name


def _remove_others(folder: Path, wanted: set[Path]) -> None:
    """Drop what an earlier choice left; a finished file may be of another version."""
    for path in folder.iterdir():
        if path not in wanted:
            remove_tree(path)


def _fetch_file(
    choice: HubChoice, file: HubFile, part: Path, done: int, progress: Progress, how: FetchSettings
) -> None:
    def tell(n: int, total: int) -> None:
        progress(f"fetching {choice.name.repo}", done + n, choice.n_bytes)

    path = urllib.parse.quote(file.path)
    url = f"{how.hf_endpoint.rstrip('/')}/{choice.name.repo}/resolve/main/{path}"
    if file.n_bytes:
        HttpFetch(url, part, file.n_bytes, file.n_bytes, how, tell, to_hub=True).run()
    with as_storage_error(part):
        if not file.n_bytes:
            part.write_bytes(b"")
        arrived = _digest(part, file, f"checking {choice.name.repo}", progress)
        if arrived != (file.sha256 or file.git_sha1):
            size = part.stat().st_size
            part.unlink()
            raise DownloadError(
                f"what arrived of {choice.name.repo}/{file.path} is not what the hub lists: "
                f"{arrived} over {size} bytes instead of {file.sha256 or file.git_sha1} "
                f"over {file.n_bytes}",
                "pull again; if that does not help, something on the way alters files",
            )
        sync(part)


def _digest(path: Path, file: HubFile, what: str, progress: Progress) -> str:
    # Git names its objects by SHA-1; files that matter have a SHA-256.
    git_head = f"blob {path.stat().st_size}\0".encode()
    return hash_file(
        hashlib.sha256() if file.sha256 else hashlib.sha1(git_head), path, what, progress
    )
