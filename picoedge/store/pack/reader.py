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
from picoedge.store.encodings import ENCODINGS
from picoedge.store.pack.manifest import Manifest, read_manifest
from picoedge.store.pack.sharding import BIASES, FileLayout, ShardLayout
from picoedge.store.rows import RowEmbedding, RowFile, tied_rows, untied_rows
from picoedge.store.shards import (
    HELD,
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
        self._manifest, self._layout = manifest, manifest.layout
        self._files = {file.name: file for file in manifest.files}
        self._maps: dict[str, U8] = {}
        self._held = held
        self.n_attention_shards = self._layout.geometry.attention_shards
        self.n_ffn_shards = self._layout.geometry.ffn_shards
        self.n_head_shards = self._layout.geometry.head_shards
        self.head_shard_rows = self._layout.geometry.head_shard_rows
        self.all_shards = Slice(
            range(self.n_attention_shards), range(self.n_ffn_shards), range(self.n_head_shards)
        )
        self.ffn_shard_cols = self._layout.geometry.ffn_shard_cols
        self.nbytes = sum(file.nbytes for file in manifest.files)

    @classmethod
    def open(cls, path: Path) -> Pack:
        """Open a pack. Raises ModelError naming the file that is missing, damaged or changed."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise ModelError(f"{path} is not a pack: it has no {MANIFEST}", "pack a model first")
        manifest = read_manifest(path)
        for file in manifest.files:
            _check_file(path / file.name, file)
        return cls(path, manifest, _recorded(path, manifest.hashes) if is_partial(path) else None)

    @property
    def identity(self) -> str:
        """Identity of the pack among boards: the hash of its manifest."""
        return _identity(self.path)

    @property
    def is_whole(self) -> bool:
        """Whether all items are on this disk."""
        return self._held is None or len(self._held) == len(self._manifest.hashes)

    @property
    def held_bytes(self) -> int:
        """Bytes of the items on this disk."""
        return sum(item.nbytes for item in self.items() if self._has(item.name))

    def items(self) -> list[PackItem]:
        """All items of the pack, in file order."""
        hashes = self._manifest.hashes
        rows = [row for file in self._files.values() for row in file.entries()]
        texts = self._manifest.text_sizes.items()
        return [PackItem(r.name, r.file, r.offset, r.nbytes, hashes[r.name]) for r in rows] + [
            PackItem(name, name, 0, nbytes, hashes[name]) for name, nbytes in texts
        ]

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
        self._check(name for name, _ in self.unit_hashes(unit))

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
                "run it with --cluster, or pack or pull the whole model on this board",
            )

    def norms(self, layer: int) -> dict[str, F32]:
        """Effective RMS norm weights by name (`ModelConfig.norm_lengths`), f32."""
        file = self._layer(layer)
        return {name: self._vector(file, name) for name in self.config.norm_lengths}

    def attention(self, layer: int, shards: range | None = None) -> dict[str, Weights]:
        """q, k, v, o of a span of key-value heads."""
        return self._mapped("attention", layer, self._span(shards, self.n_attention_shards))

    def ffn(self, layer: int, shards: range | None = None) -> dict[str, Weights]:
        """gate, up, down of a span of FFN shards."""
        return self._mapped("ffn", layer, self._span(shards, self.n_ffn_shards))

    def head(self, shards: range | None = None) -> Weights:
        """Vocabulary rows of a span of head shards; the last shard ends in zero rows."""
        span = self._span(shards, self.n_head_shards)
        return self._mapped("head", self.config.num_hidden_layers, span)["head"]

    def mapped(self, kind: UnitKind, layer: int, shards: range) -> dict[str, Weights]:
        """Matrices of a span as views of the mapped file. Raises ModelError for a missing shard."""
        self.check_unit(self.unit(kind, layer, shards))
        return self._mapped(kind, layer, shards)

    def _mapped(self, kind: UnitKind, layer: int, shards: range) -> dict[str, Weights]:
        unit = self.unit(kind, layer, shards)
        return self._matrices(unit, self._map(unit.file)[unit.offset : unit.end])

    def biases(self, layer: int, shards: range | None = None) -> dict[str, F32]:
        """q_bias, k_bias, v_bias of a span of key-value heads, f32; {} for a model without."""
        layout = self._layout.attention[layer]
        file, span = self._layer(layer), self._span(shards, self.n_attention_shards)
        start = file.start("attention.000")
        self.check_unit(self.unit("attention", layer, span))
        out: dict[str, F32] = {}
        for name in BIASES if layout.biases and span else ():
            at, length = layout.biases[name]
            places = [start + i * layout.nbytes + at for i in span]
            out[name] = np.concatenate([self._floats(file, p, length) for p in places])
        return out

    def unit(self, kind: UnitKind, layer: int, shards: range) -> Unit:
        """The unit of a span of shards: its place in the files."""
        file, layout = self._place(kind, layer)
        self._span(shards, self._count(kind))
        start = file.start(f"{kind}.000") + shards.start * layout.nbytes
        return Unit(kind, layer, shards, file.name, start, len(shards) * layout.nbytes)

    def spans(self, part: Slice) -> tuple[Unit, ...]:
        """A slice's spans in the order a token uses them, as one unit each."""
        spans: list[Unit] = []
        layers = self.config.num_hidden_layers
        for layer in range(layers):
            if part.attention:
                spans.append(self.unit("attention", layer, part.attention))
            if part.ffn:
                spans.append(self.unit("ffn", layer, part.ffn))
        if part.head_shards:
            spans.append(self.unit("head", layers, part.head_shards))
        return tuple(spans)

    def weights_in(self, unit: Unit, data: U8) -> dict[str, Weights]:
        """Matrices of a unit as views of `data`, u8 [unit.nbytes], which may be filled later."""
        self.check_unit(unit)
        return self._matrices(unit, data)

    def _matrices(self, unit: Unit, data: U8) -> dict[str, Weights]:
        assert data.shape == (unit.nbytes,)
        _, layout = self._place(unit.kind, unit.layer)
        return {
            name: Weights(spec, data, layout.nbytes, len(unit.shards))
            for name, spec in layout.matrices.items()
        }

    def unit_hashes(self, unit: Unit) -> list[tuple[str, str]]:
        """(name, blake2b in hex) of each shard of a unit, in file order."""
        folder = unit.file.removesuffix(".safetensors")
        names = [f"{folder}/{unit.kind}.{i:03d}" for i in unit.shards]
        return [(name, self._manifest.hashes[name]) for name in names]

    def _place(self, kind: UnitKind, layer: int) -> tuple[FileLayout, ShardLayout]:
        if kind == "head":
            return self._head_file, self._layout.head
        layouts = self._layout.attention if kind == "attention" else self._layout.ffn
        return self._layer(layer), layouts[layer]

    def _count(self, kind: UnitKind) -> int:
        geometry = self._layout.geometry
        counts = {
            "attention": geometry.attention_shards,
            "ffn": geometry.ffn_shards,
            "head": geometry.head_shards,
        }
        return counts[kind]

    @property
    def final_norm(self) -> F32:
        """The norm before the head, f32 [hidden]."""
        return self._vector(self._head_file, "final_norm")

    @property
    def embedding(self) -> Weights | RowEmbedding:
        """Mapped embedding; the whole head where it is tied."""
        name = self._manifest.embed
        if not name:
            return self.head()
        file = self._files["embed.safetensors"]
        data = self._map(file.name)[file.start("embed.000") :]
        return RowEmbedding(ENCODINGS[name], data.reshape(-1, self._layout.embed_row_bytes))

    def row_reader(self) -> RowFile:
        """Embedding rows read one by one, for a model that is not held whole."""
        self.check_rows()
        shards, name = range(self.n_head_shards), self._manifest.embed
        if not name:
            head = self._layout.head
            decode = tied_rows(head.matrices["head"], head.nbytes)
            unit = self.unit("head", self.config.num_hidden_layers, shards)
        else:
            file, row_bytes = self._files["embed.safetensors"], self._layout.embed_row_bytes
            decode = untied_rows(ENCODINGS[name], row_bytes)
            start = file.start("embed.000")
            unit = Unit("embed", 0, shards, file.name, start, file.nbytes - start)
        return RowFile(self.path, unit, decode)

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

    @property
    def _head_file(self) -> FileLayout:
        return self._files["head.safetensors"]

    def _layer(self, layer: int) -> FileLayout:
        return self._files[f"layer-{layer:03d}.safetensors"]

    def _map(self, name: str) -> U8:
        if name not in self._maps:
            path = self.path / name
            with reading(path):
                mapped = np.memmap(path, np.uint8, "r")
            if mapped.size != self._files[name].nbytes:
                raise ModelError(f"{path} changed size since it was opened", _REMEDY)
            self._maps[name] = mapped.view(np.ndarray)
        return self._maps[name]

    def _vector(self, file: FileLayout, tensor: str) -> F32:
        start, end = file.tensors[tensor][1:]
        self._check([f"{file.name.removesuffix('.safetensors')}/{tensor}"])
        return self._floats(file, len(file.header) + start, (end - start) // 4)

    def _floats(self, file: FileLayout, offset: int, count: int) -> F32:
        # Read, not mapped: a page fault would read megabytes around it.
        values = np.frombuffer(read_at(self.path / file.name, offset, 4 * count), "<f4")
        values.flags.writeable = False
        return values

    @staticmethod
    def _span(shards: range | None, count: int) -> range:
        span = range(count) if shards is None else shards
        assert span.step == 1
        assert 0 <= span.start <= span.stop <= count
        return span


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
