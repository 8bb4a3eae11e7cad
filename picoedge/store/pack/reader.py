"""Pack reader: views of memory-mapped shards. Opening reads only the manifest and file headers.

An incomplete pack (`store/shards.py`) has holes in its files where shards are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.config import ModelConfig
from picoedge.errors import ModelError
from picoedge.files import digest, read_at, reading
from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import Weights
from picoedge.store.encodings import ENCODINGS, RowEmbedding
from picoedge.store.pack.manifest import Manifest, read_manifest
from picoedge.store.pack.sharding import FileLayout, ShardLayout, file_stem
from picoedge.store.pages import forget_mapped, page_up
from picoedge.store.reads import RowFile, tied_rows, untied_rows
from picoedge.store.shards import (
    HELD,
    LAYER_KINDS,
    MANIFEST,
    PackItem,
    Slice,
    Unit,
    UnitKind,
    Wanted,
    is_partial,
    needed,
    pack_id,
    read_held,
)

_REMEDY = "pack the model again"


class Pack:
    """A pack folder. Weights are views of its files: keep the pack while they are in use."""

    def __init__(self, path: Path, manifest: Manifest, held: frozenset[str] | None = None) -> None:
        """`held`: names of the items on this disk; None: all."""
        self.path = path
        self.name: str = manifest.name
        self.config: ModelConfig = manifest.layout.config
        self.source: dict[str, Any] = manifest.source
        self.sampling = manifest.sampling
        self._manifest, self._layout = manifest, manifest.layout
        self._sizes = {file.name: file.nbytes for file in manifest.files}
        self._maps: dict[str, U8] = {}
        self._vectors: dict[str, F32] = {}
        self._held = held
        geometry = self._layout.geometry
        self.n_attention_shards = geometry.attention_shards
        self.n_ffn_shards, self.ffn_shard_cols = geometry.ffn_shards, geometry.ffn_shard_cols
        self.n_head_shards, self.head_shard_rows = geometry.head_shards, geometry.head_shard_rows
        self.all_shards = Slice(
            range(self.n_attention_shards), range(self.n_ffn_shards), range(self.n_head_shards)
        )
        self.nbytes = sum(self._sizes.values())

    @classmethod
    def open(cls, path: Path) -> Pack:
        """Open a pack. Raises ModelError naming the file that is missing, damaged or changed."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise ModelError(f"{path} is not a pack: it has no {MANIFEST}", "pack a model first")
        manifest = read_manifest(path)
        for file in manifest.files:
            _check_file(path / file.name, file)
        return cls(path, manifest, _recorded(path, manifest.items) if is_partial(path) else None)

    @property
    def identity(self) -> str:
        """Identity of the pack among boards: the hash of its manifest."""
        return _identity(self.path)

    @property
    def is_whole(self) -> bool:
        """Whether all items are on this disk."""
        return self._held is None or len(self._held) == len(self._manifest.items)

    @property
    def held_bytes(self) -> int:
        """Bytes of the items on this disk."""
        return sum(item.nbytes for item in self.items() if self._has(item.name))

    def items(self) -> list[PackItem]:
        """All items of the pack, in file order."""
        return list(self._manifest.items.values())

    def needed(self, wanted: Wanted) -> list[PackItem]:
        """Items that `wanted` selects."""
        return needed(self.items(), wanted, tied=not self._manifest.embed)

    def missing(self, wanted: Wanted) -> list[PackItem]:
        """Items that `wanted` selects and that are not on this disk."""
        return [item for item in self.needed(wanted) if not self._has(item.name)]

    def check_held(self, part: Slice, *, embed: bool) -> None:
        """Raise ModelError naming the first shard of `part` or embedding that is missing."""
        if self._held is not None:
            wanted = Wanted(part, embed=embed)
            self._check(item.name for item in self.needed(wanted) if not item.is_text)

    def check_unit(self, unit: Unit) -> None:
        """`check_held` for one unit."""
        self._check(item.name for item in self.unit_items(unit))

    def check_rows(self) -> None:
        """`check_held` for the embedding alone."""
        self.check_held(Slice(range(0), range(0)), embed=True)

    def _has(self, name: str) -> bool:
        return self._held is None or name in self._held

    def _check(self, names: Iterable[str]) -> None:
        missing = [name for name in names if not self._has(name)]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelError(
                f"{self.path} holds only a part of {self.name}: {missing[0]}{more} not here",
                "pack or pull the whole model on this board, or ask on a board that has it",
            )

    def norms(self, layer: int) -> dict[str, F32]:
        """Effective RMS norm weights by name (`ModelConfig.norm_lengths`), f32."""
        stem = file_stem("attention", layer)
        return {name: self._vector(f"{stem}/{name}") for name in self.config.norm_lengths}

    def shard(self, kind: UnitKind, layer: int) -> ShardLayout:
        """Matrices of one shard of a kind: their formats and shapes."""
        return self._layout.shard(kind, layer)

    def head(self, shards: range | None = None) -> Weights:
        """Vocabulary rows of a span of head shards; the last shard ends in zero rows."""
        return self.mapped("head", self.config.num_hidden_layers, shards)["head"]

    def mapped(self, kind: UnitKind, layer: int, shards: range | None = None) -> dict[str, Weights]:
        """Matrices of a span as views of the mapped file. Raises ModelError for a missing shard."""
        unit = self.unit(kind, layer, shards)
        return self.weights_in(unit, self._map(unit.file)[unit.offset : unit.end])

    def biases(self, layer: int, shards: range | None = None) -> dict[str, F32]:
        """q_bias, k_bias, v_bias of a span of key-value heads, f32; {} for a model without."""
        unit, layout = self.unit("attention", layer, shards), self.shard("attention", layer)
        self.check_unit(unit)
        out: dict[str, F32] = {}
        for name, (at, length) in layout.biases.items() if unit.shards else ():
            places = range(unit.offset + at, unit.end, layout.nbytes)
            out[name] = np.concatenate([self._floats(unit.file, p, length) for p in places])
        return out

    def unit(self, kind: UnitKind, layer: int, shards: range | None = None) -> Unit:
        """The unit of a span of shards, by default of all: its place in the files."""
        count = self._layout.geometry.count(kind)
        span = range(count) if shards is None else shards
        assert span.step == 1
        assert 0 <= span.start <= span.stop <= count
        nbytes = self.shard(kind, layer).nbytes
        first = self._manifest.items[f"{file_stem(kind, layer)}/{kind}.000"]
        start = first.offset + span.start * nbytes
        return Unit(kind, layer, span, first.file, start, len(span) * nbytes)

    def spans(self, part: Slice) -> tuple[Unit, ...]:
        """A slice's spans in the order a token uses them, as one unit each."""
        layers = self.config.num_hidden_layers
        order = [(kind, layer) for layer in range(layers) for kind in LAYER_KINDS]
        order.append(("head", layers))
        return tuple(self.unit(kind, i, part.of(kind)) for kind, i in order if part.of(kind))

    def weights_in(self, unit: Unit, data: U8) -> dict[str, Weights]:
        """Matrices of a unit as views of `data`, u8 [unit.nbytes], which may be filled later."""
        self.check_unit(unit)
        assert data.shape == (unit.nbytes,)
        layout = self.shard(unit.kind, unit.layer)
        return {
            name: Weights(spec, data, layout.nbytes, len(unit.shards))
            for name, spec in layout.matrices.items()
        }

    def unit_items(self, unit: Unit) -> list[PackItem]:
        """Each shard of a unit, in file order."""
        stem = file_stem(unit.kind, unit.layer)
        return [self._manifest.items[f"{stem}/{unit.kind}.{i:03d}"] for i in unit.shards]

    @property
    def final_norm(self) -> F32:
        """The norm before the head, f32 [hidden]."""
        return self._vector("head/final_norm")

    @property
    def embedding(self) -> Weights | RowEmbedding:
        """Mapped embedding; the whole head where it is tied."""
        name, layers = self._manifest.embed, self.config.num_hidden_layers
        unit = self.unit("embed" if name else "head", layers)
        data = self._map(unit.file)[unit.offset : unit.end]
        if name:
            return RowEmbedding(ENCODINGS[name], data.reshape(-1, self._layout.embed_row_bytes))
        head = self._layout.head  # all of it is looked up, whichever head shards a slice holds
        return Weights(head.matrices["head"], data, head.nbytes, self.n_head_shards)

    def row_reader(self) -> RowFile:
        """Embedding rows read one by one, for a model that is not held whole."""
        self.check_rows()
        name, head = self._manifest.embed, self._layout.head
        if name:
            decode = untied_rows(ENCODINGS[name], self._layout.embed_row_bytes)
            return RowFile(self.path, self.unit("embed", 0), decode)
        unit = self.unit("head", self.config.num_hidden_layers)
        return RowFile(self.path, unit, tied_rows(head.matrices["head"], head.nbytes))

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Hash all items on this disk. Raises ModelError naming the first that differs."""
        items = [item for item in self.items() if self._has(item.name)]
        total, done = sum(item.nbytes for item in items), 0
        for item in items:
            path = self.path / item.file
            if digest(path, item.offset, item.nbytes) != item.blake2b:
                raise ModelError(f"{path}: {item.name} does not match its hash", _REMEDY)
            done += item.nbytes
            if progress is not None:
                progress(done, total)

    def _map(self, name: str) -> U8:
        if name not in self._maps:
            path = self.path / name
            with reading(path):
                mapped = np.memmap(path, np.uint8, "r")
            if mapped.size != self._sizes[name]:
                raise ModelError(f"{path} changed size since it was opened", _REMEDY)
            self._maps[name] = mapped.view(np.ndarray)
        return self._maps[name]

    def unmap_pages(self) -> None:
        """Take the mapped pages out of this process's memory; access maps them anew."""
        for pages in self._maps.values():
            forget_mapped(pages, 0, page_up(pages.nbytes))

    def _vector(self, name: str) -> F32:
        if name not in self._vectors:  # a model asks for a layer's norms at each of its steps
            self._check([name])
            item = self._manifest.items[name]
            self._vectors[name] = self._floats(item.file, item.offset, item.nbytes // 4)
        return self._vectors[name]

    def _floats(self, file: str, offset: int, count: int) -> F32:
        # Read, not mapped: a page fault would read megabytes around it.
        values = np.frombuffer(read_at(self.path / file, offset, 4 * count), "<f4")
        values.flags.writeable = False
        return values


def _check_file(path: Path, file: FileLayout) -> None:
    with reading(path):
        size = path.stat().st_size
    if size != file.nbytes:
        raise ModelError(f"{path} has {size} bytes, not {file.nbytes}", _REMEDY)
    if read_at(path, 0, len(file.header)) != file.header:
        raise ModelError(f"{path}: its header is not what picoedge.json describes", _REMEDY)


def _identity(path: Path) -> str:
    with reading(path / MANIFEST):
        return pack_id((path / MANIFEST).read_bytes())


def _recorded(path: Path, names: Iterable[str]) -> frozenset[str]:
    with reading(path / HELD):
        return read_held(path, _identity(path), names)[0]
