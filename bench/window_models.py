"""The random models of the window's benches, made when first asked for."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import limits
from bench.children import picoedge, worker
from bench.limits import Limits
from bench.paced import Paced


def layers_of(pack: Path) -> int:
    """The layers of a pack that is named after them."""
    return int(pack.stem.rpartition("-")[2])


class WindowModels:
    """A folder of models: existing ones are used, missing ones are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[Limits, list[Paced]] = {}  # ours on the 1.1B shape, for rows on plans

    def gguf(self) -> Path:
        """The TinyLlama-1.1B shape in Q4_1."""
        path = self.folder / "tinyllama.gguf"
        if not path.exists():
            part = path.with_suffix(".part")
            worker("make_random", kind="gguf", path=str(part))
            part.rename(path)
        return path

    def pack(self) -> Path:
        """The pack of that GGUF."""
        path = self.folder / "tinyllama.pico"
        if not path.exists():
            picoedge("pack", str(self.gguf()), "--out", str(path))
        return path

    def offload(self) -> Path:
        """The same shape in f32 as Accelerate's offload folder."""
        path = self.folder / "offload"
        if not (path / "index.json").exists():
            worker("make_random", kind="offload", path=str(path))
        return path

    def seventy_b(self) -> Path:
        """The Llama-2-70B shape as a pack, as many of its layers as the disk has room for."""
        found = max(self.folder.glob("llama70b-*.pico"), key=layers_of, default=None)
        return found or self._make_pack("llama70b", None)

    def slice_of_70b(self, layers: int) -> Path:
        """A few layers of that shape."""
        return self._make_pack("slice70b", layers)

    def _make_pack(self, name: str, layers: int | None) -> Path:
        prefix = str(self.folder / name)
        return Path(worker("make_random", kind="pack", prefix=prefix, layers=layers)["path"])

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the GGUF's tensors: what limits are percentages of."""
        count: int = worker("ours", job="tensor_bytes", source=str(self.gguf()))
        return count


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--models DIR`."""
    parser.add_argument(
        "--models", type=Path, metavar="DIR",
        help="keep the random models there, and use those that are [default: a folder of the day]",
    )  # fmt: skip


@contextmanager
def prepared(options: argparse.Namespace) -> Iterator[WindowModels]:
    """The models' folder, once limits are known to work there. Raises LimitsError."""
    if options.models is not None:
        options.models.mkdir(parents=True, exist_ok=True)
        _check(options.models)
        yield WindowModels(options.models.resolve())
        return
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-models-") as folder:
        _check(Path(folder))
        yield WindowModels(Path(folder))


def _check(folder: Path) -> None:
    with limits.caged(folder, Limits(1 << 30, 1 << 30)) as cage:
        cage.peak_bytes()
        cage.counter.read()
