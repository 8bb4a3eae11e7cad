"""What the mesh's benches need: models, peers built elsewhere, and what rows leave for others."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.children import Unready, picoedge, worker
from bench.mesh_cluster import lab_of
from bench.models import fetched
from hw.lab import BoardLimits, LinkShape


class MeshModels:
    """A folder of models, made when first asked for; labs keep their boards' copies beside them."""

    def __init__(self, folder: Path, peers: dict[str, Path | None] | None = None) -> None:
        self.folder = folder
        self._peers = peers or {}
        self.kept: dict[str, float] = {}  # the worst peak of a board ÷ its budget, by row

    def pack(self) -> Path:
        """The TinyLlama-1.1B shape in q4, of random weights."""
        return self._made("tinyllama-q4.pico", "pack")

    def smollm2(self) -> Path:
        """The catalogue's default model."""
        path = self.folder / "smollm2.pico"
        if not path.exists():
            picoedge("pack", str(fetched("smollm2")), "--out", str(path))
        return path

    def random_smollm2(self) -> Path:
        """The same shape, of random weights: nothing is fetched, and what it says is noise."""
        return self._made("random-smollm2.pico", "chat")

    def for_distributed_llama(self) -> Path:
        """The 1.1B shape as a folder with distributed-llama's two files, Q40."""
        return self._made("distributed-llama", "distributed_llama")

    def for_tpi_llm(self) -> Path:
        """The same as a Hugging Face folder in f32."""
        return self._made("tpi-llm", "hugging_face")

    def _made(self, name: str, kind: str) -> Path:
        path = self.folder / name
        if not path.exists():
            worker("mesh_make", kind=kind, path=str(path))
        return path

    def peer(self, name: str) -> Path:
        """Where a peer was built. Raises Unready."""
        path = self._peers.get(name)
        if path is None:
            raise Unready(f"needs --{name} DIR: a build of it, outside of this repository")
        if not path.is_dir():
            raise Unready(f"--{name} {path}: no such folder")
        return path.resolve()

    def keep(self, row: str, peaks: dict[str, float]) -> None:
        """Remember the worst peak of a row's boards, for the row on budgets."""
        self.kept[row] = max(self.kept.get(row, 0.0), *peaks.values())


PEERS = ("distributed-llama", "tpi-llm")


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--models DIR`, and where peers were built."""
    parser.add_argument(
        "--models", type=Path, metavar="DIR",
        help="keep the models there, and use those that are [default: a folder of the day]",
    )  # fmt: skip
    for name in PEERS:
        parser.add_argument(
            f"--{name}", type=Path, metavar="DIR", help=f"where {name} was built or cloned"
        )


@contextmanager
def prepared(options: argparse.Namespace) -> Iterator[MeshModels]:
    """The models' folder, once a lab is known to work there. Raises Unready."""
    peers = {name: getattr(options, name.replace("-", "_"), None) for name in PEERS}
    if options.models is not None:
        options.models.mkdir(parents=True, exist_ok=True)
        _check(options.models)
        yield MeshModels(options.models.resolve(), peers)
        return
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-models-") as folder:
        _check(Path(folder))
        yield MeshModels(Path(folder), peers)


def _check(folder: Path) -> None:
    limits = BoardLimits(cpu=1.0, memory_bytes=1 << 30, disk_bytes_per_s=1 << 30)
    with lab_of(1, LinkShape(), limits, folder) as lab:
        lab.boards[0].run(["true"], check=True)
        lab.boards[0].peak_bytes()
