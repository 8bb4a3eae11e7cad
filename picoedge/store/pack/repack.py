"""A pack in f32 as a source: what was trained here can be packed again in fewer bits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from picoedge.errors import ModelError
from picoedge.files import storing
from picoedge.kernels.arrays import U8
from picoedge.store.encodings import ENCODINGS
from picoedge.store.pack.pack_tensors import PackTensors, copy_text
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.tensors import ModelSource, SourceTensor

_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True)
class _PackTensor(SourceTensor):
    """A tensor whose rows are read from a pack's shards."""

    tensors: PackTensors | None = None

    def raw(self, first: int, last: int) -> U8:
        """See `SourceTensor.raw`."""
        assert self.tensors is not None
        values = np.ascontiguousarray(self.tensors.reader(self.name)(first, last), "<f4")
        return values.view(np.uint8)


class PackSource(ModelSource):
    """A whole pack whose matrices are in f32. Raises ModelError for any other."""

    kind = "pack"

    def __init__(self, pack: Pack) -> None:
        tensors = PackTensors(pack)
        self._pack, self.name, self.metadata = pack, pack.name, {}
        self.fingerprint, self.sampling = pack.identity, pack.sampling
        if not tensors.is_exact:
            raise ModelError(f"{pack.path} is already packed", "use it as it is")
        stored = {
            name: _PackTensor(
                name, (rows, cols) if cols > 1 else (rows,), ENCODINGS["F32"], pack.path, 0,
                4 * rows * cols, tensors=tensors,
            )
            for name, (rows, cols) in tensors.shapes.items()
        }  # fmt: skip
        super().__init__(pack.path, pack.config, stored, lambda name: name, _NOTHING)

    def write_text(self, folder: Path) -> None:
        """Copy the text files of the pack. Raises StorageError."""
        with storing(folder):
            copy_text(self._pack, folder)
