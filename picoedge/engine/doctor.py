"""The checks of `picoedge doctor`: each returns faults of this board, with remedies."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from picoedge.errors import PicoedgeError
from picoedge.host import resources
from picoedge.host.disk_speed import StorageSpeed, storage_speed
from picoedge.host.sysfs import PROC, SYS, file_text
from picoedge.host.thermal import firmware_flags, read_heat
from picoedge.kernels.loader import default_threads, describe_kernels, load_training_library
from picoedge.registry.shelf import Shelf
from picoedge.units import format_size

# The modules that picoedge imports, each with the package that pip installs it by.
LIBRARIES = {
    "click": "click", "cryptography": "cryptography", "gguf": "gguf", "jinja2": "jinja2",
    "nacl": "pynacl", "numpy": "numpy", "psutil": "psutil", "rich": "rich",
    "sentencepiece": "sentencepiece", "tokenizers": "tokenizers", "zmq": "pyzmq",
    **({"tomli": "tomli"} if sys.version_info < (3, 11) else {}),
}  # fmt: skip
_LOW_MEMORY_BYTES = 300 << 20
_LOW_DISK_BYTES = 500 << 20
_HOT_C = 80.0
_SLOW_STORAGE = 25 << 20  # bytes a second: the slowest SD cards and slots
_STORAGE_TIMEOUT_S = 2.0  # a dying card must not hold up the report

# Bits of a Raspberry Pi's throttling now; 16 bits higher they mean since boot.
_THROTTLED = ("under-voltage", "clock capped", "throttled", "soft temperature limit")


@dataclass(frozen=True)
class Check:
    """One line of the doctor: `status` is "ok", "warn" or "fail"."""

    name: str
    status: str
    text: str
    remedy: str = ""


def check_board(shelf: Shelf, kernels: str | None = None) -> Iterator[Check]:
    """Every check, the cheap and basic ones first."""
    yield check_python(sys.version_info[:3], sys.maxsize)
    yield check_libraries([name for name in LIBRARIES if not importlib.util.find_spec(name)])
    yield check_numpy()
    yield check_kernels(kernels)
    compiler = next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    yield Check("compiler", "ok", compiler or "none; only the kernels' build needs it")
    yield Check("cores", "ok", f"{default_threads()} of {os.cpu_count()}, {platform.machine()}")
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    without_cgroups = resources.available_bytes(groups=Path(os.devnull))
    yield check_memory(resources.available_bytes(), installed, without_cgroups)
    yield check_swaps(file_text(PROC / "swaps"))
    yield check_disk(shelf.folder)
    yield check_leftovers(shelf)
    yield check_storage(shelf)
    yield check_model(shelf)
    yield from check_power(SYS)
    yield from check_heat(SYS)


def check_python(version: tuple[int, ...], maxsize: int) -> Check:
    """Python is new enough, and 64-bit."""
    text = f"{'.'.join(map(str, version))}, {'64' if maxsize > 2**32 else '32'}-bit"
    if version < (3, 10):
        return Check("python", "fail", text, "picoedge needs Python 3.10 or newer")
    if maxsize <= 2**32:
        return Check("python", "warn", text, "best effort: a 64-bit system is the target")
    return Check("python", "ok", text)


def check_libraries(missing: list[str]) -> Check:
    """All libraries that picoedge imports are installed; `missing`: modules of LIBRARIES."""
    if missing:
        remedy = f"pip install {' '.join(LIBRARIES[name] for name in missing)}"
        return Check("libraries", "fail", f"missing: {', '.join(missing)}", remedy)
    return Check("libraries", "ok", "all there")


def check_numpy() -> Check:
    """NumPy and the BLAS it multiplies f32 matrices with."""
    import numpy as np

    blas = "BLAS not known"
    try:
        config = np.show_config(mode="dicts")
        blas = config["Build Dependencies"]["blas"]["name"]
    except (TypeError, KeyError):  # NumPy 1.24 only prints it
        pass
    return Check("numpy", "ok", f"{np.__version__}, {blas}")


def check_kernels(kind: str | None) -> Check:
    """The kernels that run, and why these; those of training are checked too."""
    try:
        text = describe_kernels(kind)
        load_training_library(kind)
    except PicoedgeError as error:
        return Check("kernels", "fail", error.message, error.hint)
    if kind is None and text.startswith("NumPy"):
        why = text.partition(": install")[0]
        return Check("kernels", "warn", why, "apt install gcc, then install picoedge again")
    return Check("kernels", "ok", text)


def check_memory(available: int, total: int, without_limit: int) -> Check:
    """Free memory, within this process's cgroup limit."""
    text = f"{format_size(available)} free of {format_size(total)}"
    if available < 0.9 * without_limit:  # more than what changes between two readings
        text += f", by its cgroup's limit (else {format_size(without_limit)})"
    if available < _LOW_MEMORY_BYTES:
        return Check("memory", "warn", text, "stop other programs, or take a smaller --ctx-size")
    return Check("memory", "ok", text)


def check_swaps(table: str) -> Check:
    """No swap on a disk: it wears out SD cards and stalls the board. zram is fine."""
    rows = [line.split() for line in table.splitlines()[1:]]
    disks = [row[0] for row in rows if len(row) >= 4 and "zram" not in row[0]]
    used = sum(int(row[3]) for row in rows if row[:1] and row[0] in disks) * 1024
    if used:
        where = ", ".join(disks)
        return Check("swap", "warn", f"{format_size(used)} used on {where}", "use zram instead")
    return Check("swap", "ok", "none in use on a disk")


def check_disk(folder: Path) -> Check:
    """The shelf can be written and has room."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        return Check("disk", "fail", f"{folder} cannot be written", "set PICOEDGE_HOME elsewhere")
    free = shutil.disk_usage(place).free
    text = f"{format_size(free)} free for {folder}"
    if free < _LOW_DISK_BYTES:
        return Check("disk", "warn", text, "picoedge rm removes models; or set PICOEDGE_HOME")
    return Check("disk", "ok", text)


def check_leftovers(shelf: Shelf) -> Check:
    """Remove leftovers of killed commands; name downloads that can go on."""
    freed = shelf.sweep()
    begun = [item.name for item in shelf.items() if item.state == "begun"]
    text = f"removed {format_size(freed)} that ended commands left" if freed else "none"
    if begun:
        names = ", ".join(begun[:4])
        return Check(
            "leftovers", "warn", f"{text}; begun downloads: {names}", "pull them, or picoedge rm"
        )
    return Check("leftovers", "ok", text)


def check_storage(shelf: Shelf) -> Check:
    """Read speed of the storage that holds the packs."""
    try:
        packs = [(item.n_bytes, item.path) for item in shelf.items() if item.state == "packed"]
        largest = max(packs, default=(0, None))[1]
        if largest is None:
            return Check("storage", "ok", "its speed is measured once a model is packed")
        folder = shelf.folder.parent
        return check_speed(storage_speed(largest, cache=folder, timeout_s=_STORAGE_TIMEOUT_S))
    except PicoedgeError as error:
        return Check("storage", "warn", error.message, error.hint)


def check_speed(speed: StorageSpeed) -> Check:
    """Storage is fast enough: a model larger than memory runs at its speed."""
    if not speed.enough:
        return Check("storage", "ok", f"{speed}; too little was read to be sure")
    if speed.best >= _SLOW_STORAGE:
        return Check("storage", "ok", str(speed))
    if speed.held_back:
        return Check("storage", "warn", str(speed), "raise the read limit of its control group")
    remedy = "an A2 card or a USB 3 SSD, else models larger than memory crawl"
    return Check("storage", "warn", f"slow: {speed}", remedy)


def check_model(shelf: Shelf) -> Check:
    """There is a packed model."""
    packed = [item.name for item in shelf.items() if item.state == "packed"]
    if packed:
        return Check("models", "ok", ", ".join(packed))
    if importlib.util.find_spec("pip") is None:
        remedy = "python -m ensurepip, then picoedge pull"
        return Check("models", "warn", "none yet, and this Python has no pip", remedy)
    return Check("models", "warn", "none yet", "picoedge pull")


def check_power(sys: Path) -> Iterator[Check]:
    """Power and clock as a Raspberry Pi's firmware reports them, where there is one."""
    flags = firmware_flags(sys)
    if flags is None:
        return
    for status, since, shift in (("fail", "now", 0), ("warn", "since boot", 16)):
        found = [text for bit, text in enumerate(_THROTTLED, shift) if flags >> bit & 1]
        if found:
            text = f"{since}: {', '.join(found)}"
            yield Check("power", status, text, "a better power supply or cooling")
            return
    yield Check("power", "ok", "no throttling since boot")


def check_heat(sys: Path) -> Iterator[Check]:
    """The hottest sensor, where there is one."""
    degrees = read_heat(sys).temperature_c
    if degrees is None:
        return
    hot = degrees >= _HOT_C
    remedy = "give it air or a heat sink" if hot else ""
    yield Check("heat", "warn" if hot else "ok", f"{degrees:.0f} °C", remedy)
