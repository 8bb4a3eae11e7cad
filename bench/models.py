"""The two models that everything is measured on: their GGUFs, and packs made by this very code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bench.children import ROOT, BenchError, Finished, picoedge

ENTRIES = {
    "smollm2": ROOT / "models" / "smollm2-135m.toml",
    "gemma": ROOT / "tests" / "data" / "gemma3-270m.toml",
}


class Models:
    """GGUFs by name (given, or fetched as the catalogue says) and their packs, each made once."""

    def __init__(self, scratch: Path, given: Mapping[str, Path | None]) -> None:
        self._scratch, self._given = scratch, given
        self._ggufs: dict[str, Path] = {}
        self._packed: dict[str, Finished] = {}

    def gguf(self, name: str) -> str:
        """The path of a model's GGUF. Raises BenchError where it cannot be had."""
        if name not in self._ggufs:
            path = self._given.get(name) or fetched(name)
            if not path.is_file():
                raise BenchError(f"{path}: no such file")
            self._ggufs[name] = path.resolve()
        return str(self._ggufs[name])

    def pack(self, name: str) -> str:
        """The path of a model's pack; the first call packs."""
        self.packing(name)
        return str(self._pack_path(name))

    def packing(self, name: str) -> Finished:
        """How the packing of a model went."""
        if name not in self._packed:
            out = str(self._pack_path(name))
            self._packed[name] = picoedge("pack", self.gguf(name), "--out", out)
        return self._packed[name]

    def _pack_path(self, name: str) -> Path:
        return self._scratch / f"{name}.pico"


def fetched(name: str) -> Path:
    """A GGUF of the catalogue, in the same place as the tests keep theirs."""
    from picoedge.errors import PicoedgeError
    from picoedge.registry.catalogue import load_entry
    from picoedge.registry.download import fetch

    cache = os.environ.get("PICOEDGE_TEST_CACHE") or Path.home() / ".cache" / "picoedge-tests"
    try:
        entry = load_entry(ENTRIES[name])
        target = Path(cache) / f"{entry.name}.gguf"
        fetch(entry, target)
    except PicoedgeError as error:
        raise BenchError(str(error)) from error
    return target
