"""C libraries of the benches, compiled when a bench runs and preloaded into boards' processes."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

from bench.children import BenchError, Unready

BENCH = Path(__file__).resolve().parents[2]
YEAR_S = 365 * 86400


def compiled(source: str, folder: Path) -> Path:
    """A C file, as "life/faults/faults.c", as a library in `folder`. Raises Unready, BenchError."""
    if shutil.which("gcc") is None:
        raise Unready("gcc is needed for what befalls boards: apt install gcc libc6-dev")
    library = (folder / source.replace("/", "-")).with_suffix(".so")
    words = ["gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", str(BENCH / source)]
    done = subprocess.run(
        [*words, "-o", str(library), "-ldl"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(f"{source}: {done.stderr}")
    return library


class Faults:
    """The clock and the card of one board, as its processes find them at any moment."""

    def __init__(self, library: Path, page: Path) -> None:
        self._library, self._page = library, page
        self._wrong_by_s, self._is_full = 0, False
        self._write()

    def environment(self) -> dict[str, str]:
        """For each process of the board."""
        return {"LD_PRELOAD": str(self._library), "BENCH_FAULTS": str(self._page)}

    def set_clock(self, wrong_by_s: int) -> None:
        """Step the wall clock: so much from the true time."""
        self._wrong_by_s = wrong_by_s
        self._write()

    def set_full(self, is_full: bool) -> None:
        """Nothing more can be written to the card, or it can again."""
        self._is_full = is_full
        self._write()

    def _write(self) -> None:
        mode = "r+b" if self._page.exists() else "w+b"
        with open(self._page, mode, buffering=0) as file:
            file.write(struct.pack("<qq", self._wrong_by_s, int(self._is_full)))
