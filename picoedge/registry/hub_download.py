"""A model of a Hugging Face hub, fetched into a folder: each file whole and checked, or none.

The folder is hidden beside the pack that is made of it. An interrupted download is gone on with:
finished files have their own names, and begun ones the name of what they are to become. What is
there is compared with the hub's record as it is now: a file of an earlier version is fetched anew.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from pathlib import Path
from typing import NamedTuple

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
from picoedge.registry.packing import check_before_weights
from picoedge.registry.paths import as_storage_error, remove_tree

_PAGES = 64
_MORE = 1.1  # of a GGUF's pack: rare types become wider


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
        if len({place.target for place in places.values()}) < len(places):
            raise DownloadError(f"{choice.name.repo} has two files of one name")
        _remove_others(folder, {path for place in places.values() for path in place})
        for file, place in places.items():
            _keep_if_listed(choice, file, place, progress)
        have = sum(_bytes_of(place.part, place.target) for place in places.values())
    pack_bytes = choice.pack_bytes if choice.is_folder else int(_MORE * choice.pack_bytes)
    require_space(folder, choice.n_bytes - have + pack_bytes)
    done, seen = 0, not choice.is_folder
    for file, place in sorted(places.items(), key=lambda each: each[0].is_weights):
        if file.is_weights and not seen:
            check_before_weights(folder)  # not after gigabytes
            seen = True
        if not place.target.exists():
            _fetch_file(choice, file, place.part, done, progress, how)
            with as_storage_error(folder):
                os.replace(place.part, place.target)
                place.mark.touch()
        done += file.n_bytes
    return folder if choice.is_folder else places[choice.files[0]].target


class _Places(NamedTuple):
    """Of one file: where it arrives, its own name once it is whole, and the mark beside it.

    The mark is an empty file, made once `target` was found to have the hash in the mark's name:
    gigabytes are hashed once.
    """

    part: Path
    target: Path
    mark: Path


def _places(folder: Path, file: HubFile) -> _Places:
    name, digest = file.path.rpartition("/")[2], (file.sha256 or file.git_sha1)[:16]
    mark = f".{hashlib.sha256(name.encode()).hexdigest()[:16]}.{digest}.checked"
    return _Places(folder / f".{digest}.part", folder / name, folder / mark)


def _remove_others(folder: Path, wanted: set[Path]) -> None:
    """Drop what an earlier choice or listing left: its files, and its marks."""
    for path in folder.iterdir():
        if path not in wanted:
            remove_tree(path)


def _keep_if_listed(choice: HubChoice, file: HubFile, place: _Places, progress: Progress) -> None:
    """Remove a finished file that is not the listed one: the repository may have changed since."""
    if not place.target.exists():
        place.mark.unlink(missing_ok=True)
        return
    same = place.target.stat().st_size == file.n_bytes
    if same and not place.mark.exists():
        found = _digest(place.target, file, f"checking {choice.name.repo}", progress)
        same = found == (file.sha256 or file.git_sha1)
    if same:
        place.mark.touch()
        return
    place.mark.unlink(missing_ok=True)
    place.target.unlink()


def _bytes_of(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())


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
