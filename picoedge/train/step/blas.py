"""OpenBLAS is held to one thread: threads of training are whole micro-batches, and its own, which
spin while they wait, would take the cores from them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

_SETTERS = tuple(
    f"{prefix}openblas_set_num_threads{suffix}"
    for prefix in ("scipy_", "")
    for suffix in ("64_", "", "_64")
)


def hold_blas_to_one_thread(maps: Path = Path("/proc/self/maps")) -> bool:
    """Whether a library was found and told. NumPy has to be loaded."""
    found = False
    for path in _libraries(maps):
        library = ctypes.CDLL(path)
        for name in _SETTERS:
            setter = getattr(library, name, None)
            if setter is not None:
                setter.argtypes, setter.restype = (ctypes.c_int,), None
                setter(1)
                found = True
                break
    return found


def _libraries(maps: Path) -> Iterator[str]:
    """Paths of the BLAS libraries in this process."""
    try:
        lines = maps.read_text(errors="replace").splitlines()
    except OSError:
        return
    paths = {line.split(maxsplit=5)[-1] for line in lines if "blas" in line}
    yield from sorted(path for path in paths if "blas" in Path(path).name and ".so" in path)
