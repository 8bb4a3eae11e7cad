"""The model shelf: MODEL, as people name it, to a pack on this disk.

A MODEL is a name of the catalogue, a `.gguf` file, a Hugging Face folder, a `.pico` folder, or
`hf:OWNER/REPO[:QUANT]`, a model of a Hugging Face hub. An unpacked model is packed into the
shelf's folder on first use: $PICOEDGE_HOME/models, else $XDG_CACHE_HOME/picoedge/models. There, all
under one NAME:

    NAME.pico/     the pack
    NAME.gguf      only while a catalogue model is fetched and packed: an SD card is small
    .NAME.hub/     the same, of a model of a Hugging Face hub
    .NAME.lock     held by the process that fetches, packs or removes NAME
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.errors import ModelError, UsageError
from picoedge.files import take_lock
from picoedge.progress import Progress, no_progress
from picoedge.registry.catalogue import (
    CatalogueEntry,
    FetchSettings,
    catalogue_folders,
    default_entry,
    is_model_name,
    load_catalogue,
)
from picoedge.registry.fits import MemoryOfModel
from picoedge.registry.hub import (
    FLOATS,
    QUANTS,
    HubChoice,
    HubName,
    is_hub_name,
    parse_hub_name,
)
from picoedge.registry.paths import (
    as_storage_error,
    disk_bytes,
    is_pack,
    lock_file,
    remove_left,
    remove_tree,
    shelf_folder,
    source_name,
)
from picoedge.store.shards import is_partial
from picoedge.suggest import closest
from picoedge.text.template.template import chosen_path

if TYPE_CHECKING:
    from picoedge.store.pack.reader import Pack


_BEGUN = re.compile(r"\.([a-z0-9][a-z0-9._-]{0,79}?)(?:\.gguf\.[0-9a-f]{8}\.\d+\.part|\.hub)")
_LEFT = re.compile(
    r"\.\.?([a-z0-9][a-z0-9._-]{0,79}?)(?:\.(?:pico|gguf|hub)\.removed|\.gguf\.[\w.]+\.wheel)"
)


@dataclass(frozen=True)
class ShelfItem:
    """One line of `picoedge list`.

    `state` is "packed", "in part" (a slice for the cluster), "fetched", "begun" (a download) or
    "not pulled".
    """

    name: str
    state: str
    n_bytes: int  # on this disk; of the download where it is not pulled
    path: Path | None
    licence: str
    description: str
    default: bool
    memory: MemoryOfModel

    def to_json(self) -> dict[str, Any]:
        """Plain values for `picoedge list --json`."""
        values = dataclasses.asdict(self)
        values["bytes"] = values.pop("n_bytes")
        memory = values.pop("memory")
        values |= {"memory_bytes": memory["whole"], "least_memory_bytes": memory["least"]}
        values["memory_is_estimated"] = memory["is_estimated"]
        return {**values, "path": str(self.path) if self.path else None}


@dataclass(frozen=True)
class Shelf:
    """A folder of packs and the catalogue that fills it."""

    folder: Path
    entries: Mapping[str, CatalogueEntry]
    how: FetchSettings

    @classmethod
    def from_environment(cls) -> Shelf:
        """The shelf of this user. Raises UsageError where a catalogue file is unsound."""
        endpoint = os.environ.get("HF_ENDPOINT") or FetchSettings.hf_endpoint
        entries = load_catalogue(catalogue_folders(os.environ))
        how = FetchSettings(hf_endpoint=endpoint, hf_token=_token(os.environ))
        return cls(shelf_folder(os.environ), entries, how)

    def entry(self, name: str | None) -> CatalogueEntry:
        """The catalogue's entry (None: the default one). Raises UsageError where there is none."""
        if name is None:
            return default_entry(self.entries)
        if name not in self.entries:
            raise _unknown(name, self.entries, "in the catalogue")
        return self.entries[name]

    def find(self, model: str | None) -> Path:
        """The pack of `model` if there is one already; packs and fetches nothing.

        Raises ModelError or UsageError saying what to do where there is none.
        """
        model = self.entry(None).name if model is None else model
        if is_hub_name(model):
            name = parse_hub_name(model)
            if path := self._pack_of(name):
                return path
            raise ModelError(f"{name} is not on this board yet", f"picoedge pull -hf {name}")
        if self._is_name(model):
            pack = self._pack_path(model)
            if not pack.exists():
                raise ModelError(f"{model} is not on this board yet", f"picoedge pull {model}")
            return pack
        path = self._existing(model)
        pack = path if is_pack(path) else self._pack_path(source_name(path))
        if not pack.exists():
            raise ModelError(f"{model} is not packed", f"picoedge pack {model}")
        return pack

    def open(
        self,
        model: str | None,
        progress: Progress | None = None,
        chosen: Callable[[HubChoice], None] | None = None,
    ) -> Pack:
        """The pack of `model` (None: the default one), fetched and packed if need be.

        `chosen` is told the files of a hub's model before any is fetched. Raises UsageError (no
        such model), ModelError, DownloadError, StorageError.
        """
        from picoedge.registry.packing import pack_model
        from picoedge.store.pack.reader import Pack

        progress = progress or no_progress
        model = self.entry(None).name if model is None else model
        if is_hub_name(model):
            return self._open_of_hub(parse_hub_name(model), progress, chosen)
        if not self._is_name(model):
            path = self._existing(model)
            if is_pack(path):
                return Pack.open(path)
            pack = partial(pack_model, path, progress=progress)
            return self._up_to_date(source_name(path), path, pack, progress)
        if model not in self.entries:
            return Pack.open(self._pack_path(model))
        fetch = partial(self._fetch_and_pack, self.entries[model], progress=progress)
        return self._up_to_date(model, None, fetch, progress)

    def _open_of_hub(
        self, name: HubName, progress: Progress, chosen: Callable[[HubChoice], None] | None
    ) -> Pack:
        """The pack of a hub's model. A pack on this disk is taken as it is, without a network."""
        from picoedge.registry.hub_download import look_up

        if (path := self._pack_of(name)) and (pack := _current(path, None)):
            return pack
        choice = look_up(name, self.how)
        own = name.shelf_name(choice.label)
        if chosen and not self._pack_path(own).exists():
            chosen(choice)
        make = partial(self._fetch_and_pack_choice, choice, own, progress=progress)
        return self._up_to_date(own, None, make, progress)

    def _pack_of(self, name: HubName) -> Path | None:
        """The pack of a hub's model that is here; the usual quantization where none is named."""
        if name.quant:
            path = self._pack_path(name.shelf_name(name.quant))
            return path if path.exists() else None
        found = {path.stem: path for path in self._glob(f"{glob.escape(name.stem)}.*.pico")}
        order = [name.shelf_name(quant) for quant in (*QUANTS, FLOATS)]
        known = [found[stem] for stem in order if stem in found]
        return next(iter(known or found.values()), None)

    def _fetch_and_pack_choice(
        self,
        choice: HubChoice,
        name: str,
        out: Path,
        bits: int | None = None,
        *,
        progress: Progress,
    ) -> None:
        from picoedge.registry.hub_download import fetch_choice
        from picoedge.registry.packing import pack_model

        folder = self.folder / f".{name}.hub"
        source = fetch_choice(choice, folder, progress, self.how)
        pack_model(source, out, bits=bits, progress=progress)
        with as_storage_error(folder):
            remove_tree(folder)

    def pack_from_hub(
        self, name: HubName, out: Path | None, bits: int | None, progress: Progress | None
    ) -> Path:
        """Fetch a hub's model and pack it as `out` (None: in this folder); returns the pack."""
        from picoedge.registry.hub_download import look_up

        choice, told = look_up(name, self.how), progress or no_progress
        own = name.shelf_name(choice.label)
        target = out or Path(f"{own}.pico")
        with self._locked(own, told):
            self._fetch_and_pack_choice(choice, own, target, bits, progress=told)
        return target

    def items(self) -> list[ShelfItem]:
        """Packs on the shelf, then models to pull, least memory first."""
        packs = {path.stem: path for path in self._glob("*.pico")}
        fetched = {path.stem: path for path in self._glob("*.gguf") if path.stem not in packs}
        known = {*packs, *fetched}
        begun = {
            match[1]: path
            for path in [*self._glob(".*.part"), *self._glob(".*.hub")]
            if (match := _BEGUN.fullmatch(path.name)) and match[1] not in known
        }
        rest = [name for name in self.entries if name not in known and name not in begun]
        rest.sort(key=lambda name: self.entries[name].memory_bytes)
        return [
            *(self._item(n, "in part" if is_partial(p) else "packed", p) for n, p in packs.items()),
            *(self._item(name, "fetched", path) for name, path in fetched.items()),
            *(self._item(name, "begun", path) for name, path in begun.items()),
            *(self._item(name, "not pulled", None) for name in rest),
        ]

    def remove(self, name: str) -> int:
        """Remove what the shelf holds under `name`; returns the bytes freed.

        Raises UsageError where `name` is not on the shelf: nothing else is ever removed.
        """
        found = self.held(name)
        self.sweep()
        with self._locked(name, no_progress), as_storage_error(self.folder):
            freed = sum(disk_bytes(path) for path in found)
            for path in found:
                remove_tree(path)
        return freed

    def held(self, name: str) -> list[Path]:
        """The files and folders the shelf holds under `name`. Raises UsageError if none."""
        found: list[Path] = []
        if is_model_name(name):
            paths = (self._pack_path(name), self.folder / f"{name}.gguf")
            found = [path for path in paths if os.path.lexists(path)]
            if found and os.path.lexists(chosen_path(paths[0])):
                found.append(chosen_path(paths[0]))
            found += self._glob(f".{name}.gguf.*")
            found += self._glob(f".{name}.hub")
        if not found:
            raise _unknown(name, [item.name for item in self.items() if item.path], "on the shelf")
        return found

    def sweep(self) -> int:
        """Remove what killed processes left on the shelf; returns the bytes freed.

        A download that was begun stays, for it is gone on with; `rm` removes it.
        """
        from picoedge.store.pack.atomic_folder import sweep

        freed = sweep(self.folder)
        for path in [*self._glob(".*.removed"), *self._glob(".*.wheel")]:
            match = _LEFT.fullmatch(path.name)
            if match is None:
                continue
            with suppress(OSError), (self.folder / f".{match[1]}.lock").open("ab") as lock:
                if take_lock(lock.fileno()):
                    freed += disk_bytes(path)
                    remove_left(path)
        return freed

    def _is_name(self, model: str) -> bool:
        return is_model_name(model) and (model in self.entries or self._pack_path(model).exists())

    def _existing(self, model: str) -> Path:
        path = Path(model)
        if model and path.exists():
            return path
        if os.sep not in model and path.suffix not in (".gguf", ".pico"):
            raise _unknown(model, self.entries, "in the catalogue, nor a file or folder here")
        packed = self._pack_path(source_name(path))
        hint = f"its pack is still here: {packed.stem}" if packed.exists() else "check the path"
        raise ModelError(f"{model} does not exist", hint)

    def _up_to_date(
        self, name: str, source: Path | None, make: Callable[[Path], None], progress: Progress
    ) -> Pack:
        """The pack `name`; made first, by one process, if it is not current (see `_current`)."""
        from picoedge.store.pack.reader import Pack

        out = self._pack_path(name)
        if pack := _current(out, source):
            return pack
        with self._locked(name, progress):
            if pack := _current(out, source):
                return pack
            make(out)
        return Pack.open(out)

    def _fetch_and_pack(self, entry: CatalogueEntry, out: Path, progress: Progress) -> None:
        from picoedge.registry.download import fetch
        from picoedge.registry.packing import pack_model

        if hub_name := entry.hub_name:
            from picoedge.registry.hub_download import look_up

            choice = look_up(hub_name, self.how)
            self._fetch_and_pack_choice(choice, entry.name, out, progress=progress)
            return
        gguf = self.folder / f"{entry.name}.gguf"
        fetch(entry, gguf, progress=progress, how=self.how)
        pack_model(gguf, out, progress=progress)
        with as_storage_error(gguf):
            gguf.unlink()

    def _locked(self, name: str, progress: Progress) -> AbstractContextManager[None]:
        return lock_file(
            self.folder / f".{name}.lock",
            lambda: progress(f"waiting for the process that has {name}", 0, 0),
        )

    def _pack_path(self, name: str) -> Path:
        return self.folder / f"{name}.pico"

    def _glob(self, pattern: str) -> list[Path]:
        with as_storage_error(self.folder):
            return sorted(self.folder.glob(pattern)) if self.folder.is_dir() else []

    def _item(self, name: str, state: str, path: Path | None) -> ShelfItem:
        entry = self.entries.get(name)
        size = disk_bytes(path) if path else entry.n_bytes if entry else 0
        about = (entry.licence, entry.description, entry.default) if entry else ("", "", False)
        return ShelfItem(name, state, size, path, *about, memory_of(entry, size))


def memory_of(entry: CatalogueEntry | None, n_bytes: int) -> MemoryOfModel:
    """The memory a model takes: as its entry says, else by the bytes of its pack."""
    if entry is None:
        return MemoryOfModel.of_pack(n_bytes)
    least = entry.least_memory_bytes or MemoryOfModel.of_pack(entry.n_bytes).least
    return MemoryOfModel(entry.memory_bytes, min(least, entry.memory_bytes), not entry.measured)


def _current(out: Path, source: Path | None) -> Pack | None:
    """The pack at `out` if it opens and was packed from `source` as it is now.

    Without `source` any pack that opens is current. Raises ModelError where `source` is no model.
    """
    if not out.exists():
        return None
    from picoedge.store.pack.reader import Pack  # NumPy and all: not to list what there is

    try:
        pack = Pack.open(out)
    except ModelError:
        return None
    if source is None:
        return pack
    from picoedge.store.sources.source import open_source

    return pack if pack.source.get("fingerprint") == open_source(source).fingerprint else None


def _token(environ: Mapping[str, str]) -> str:
    """The user's token; without what cannot be in a header."""
    token = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    return token.strip() if token.strip().isascii() and token.strip().isprintable() else ""


def _unknown(name: str, known: Iterable[str], where: str) -> UsageError:
    names = list(known)
    begun = [each for each in names if name and each.startswith(name)]
    near = begun or [*filter(None, [closest(name, names)])]
    hint = f"did you mean {' or '.join(near)}?" if near else "picoedge list shows the names"
    return UsageError(f"{name!r} is not {where}", hint)
