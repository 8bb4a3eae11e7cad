"""What is wrong with this board, and what to do about it: the checks of `picoedge doctor`."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from picoedge.errors import PicoedgeError
from picoedge.host import memory
from picoedge.host.disk_speed import StorageSpeed, storage_speed
from picoedge.kernels.loader import default_threads, describe_kernels
from picoedge.registry.shelf import Shelf
from picoedge.units import format_size

LIBRARIES = ("click", "gguf", "jinja2", "psutil", "rich", "safetensors", "sentencepiece",
             "tokenizers", "zmq")  # fmt: skip
_LOW_MEMORY_BYTES = 300 << 20
_LOW_DISK_BYTES = 500 << 20
_HOT_C = 80.0
_SLOW_STORAGE = 25 << 20  # bytes a second: a card of the old sort, or a slot at its slowest
_STORAGE_PATIENCE_S = 2.0

# Bits of `vcgencmd get_throttled`; the same 16 higher: since boot.
_THROTTLED = {
    0: "under-voltage",
    1: "clock capped",
    2: "throttled",
    3: "soft temperature limit",
}


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
    yield check_compiler()
    yield Check("cores", "ok", f"{default_threads()} of {os.cpu_count()}, {platform.machine()}")
    yield check_memory(memory.available_bytes(), _installed_bytes(), _without_cgroups())
    yield check_swaps(_text_of(Path("/proc/swaps")))
    yield check_disk(shelf.folder)
    yield check_storage(shelf)
    yield check_model(shelf)
    yield from check_firmware()
    yield from check_heat(Path("/sys/class/thermal"))


def check_python(version: tuple[int, ...], maxsize: int) -> Check:
    """Python is new enough, and 64-bit."""
    text = f"{'.'.join(map(str, version))}, {'64' if maxsize > 2**32 else '32'}-bit"
    if version < (3, 10):
        return Check("python", "fail", text, "picoedge needs Python 3.10 or newer")
    if maxsize <= 2**32:
        return Check("python", "warn", text, "best effort: a 64-bit system is the target")
    return Check("python", "ok", text)


def check_libraries(missing: list[str]) -> Check:
    """What picoedge stands on is installed."""
    if missing:
        return Check("libraries", "fail", f"missing: {', '.join(missing)}", "pip install picoedge")
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
    """Which twin of the kernels runs, and why."""
    try:
        text = describe_kernels(kind)
    except PicoedgeError as error:
        return Check("kernels", "fail", error.message, error.hint)
    if kind is None and text.startswith("NumPy"):
        why = text.partition(": install")[0]
        return Check("kernels", "warn", why, "apt install gcc, then install picoedge again")
    return Check("kernels", "ok", text)


def check_compiler() -> Check:
    """Only the build of the C kernels needs one."""
    found = [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
    return Check("compiler", "ok", found[0] if found else "none; only the kernels' build needs it")


def check_memory(available: int, total: int, without_limit: int) -> Check:
    """Memory that is free, within the limit of this process's cgroup if that is less."""
    text = f"{format_size(available)} free of {format_size(total)}"
    if available < 0.9 * without_limit:  # not just what changed between two looks
        text += f", by its cgroup's limit (else {format_size(without_limit)})"
    if available < _LOW_MEMORY_BYTES:
        return Check("memory", "warn", text, "stop other programs, or take a smaller --ctx-size")
    return Check("memory", "ok", text)


def check_swaps(table: str) -> Check:
    """Swap on an SD card wears it out and stalls the board; in compressed memory it is fine."""
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


def check_storage(shelf: Shelf) -> Check:
    """How fast the place where packs are kept can be read."""
    try:
        packs = [(item.n_bytes, item.path) for item in shelf.items() if item.state == "packed"]
        largest = max(packs, default=(0, None))[1]
        if largest is None:
            return Check("storage", "ok", "its speed is measured once a model is packed")
        folder = shelf.folder.parent
        return check_speed(storage_speed(largest, cache=folder, patience_s=_STORAGE_PATIENCE_S))
    except PicoedgeError as error:
        return Check("storage", "warn", error.message, error.hint)


def check_speed(speed: StorageSpeed) -> Check:
    """A model larger than memory runs at the speed of its storage."""
    if not speed.enough:
        return Check("storage", "ok", f"{speed}; too little was read to be sure")
    if speed.best >= _SLOW_STORAGE:
        return Check("storage", "ok", str(speed))
    if speed.held_back:
        return Check("storage", "warn", str(speed), "raise the read limit of its control group")
    remedy = "an A2 card or a USB 3 SSD, else models larger than memory crawl"
    return Check("storage", "warn", f"slow: {speed}", remedy)


def check_model(shelf: Shelf) -> Check:
    """There is a model to talk with."""
    packed = [item.name for item in shelf.items() if item.state == "packed"]
    if packed:
        return Check("models", "ok", ", ".join(packed))
    if importlib.util.find_spec("pip") is None:
        remedy = "python -m ensurepip, then picoedge pull"
        return Check("models", "warn", "none yet, and this Python has no pip", remedy)
    return Check("models", "warn", "none yet", "picoedge pull")


def check_firmware() -> Iterator[Check]:
    """What a Raspberry Pi's firmware says of its power and clock."""
    if shutil.which("vcgencmd") is None:
        return
    try:
        answer = subprocess.run(
            ["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=5, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    yield check_throttled(answer)


def check_throttled(answer: str) -> Check:
    """`throttled=0x50005`, in words."""
    try:
        bits = int(answer.strip().partition("=")[2], 16)
    except ValueError:
        return Check("power", "warn", "vcgencmd gives no answer", "add this user to group video")
    now = [text for bit, text in _THROTTLED.items() if bits >> bit & 1]
    before = [text for bit, text in _THROTTLED.items() if bits >> (bit + 16) & 1]
    remedy = "a better power supply or cooling"
    if now:
        return Check("power", "fail", f"now: {', '.join(now)}", remedy)
    if before:
        return Check("power", "warn", f"since boot: {', '.join(before)}", remedy)
    return Check("power", "ok", "no throttling since boot")


def check_heat(folder: Path) -> Iterator[Check]:
    """The hottest sensor, where there is one."""
    texts = [_text_of(path) for path in folder.glob("thermal_zone*/temp")]
    degrees = [int(text) / 1000 for text in texts if text.strip().lstrip("-").isdecimal()]
    if not degrees:
        return
    hot = max(degrees) >= _HOT_C
    text = f"{max(degrees):.0f} °C"
    yield Check("heat", "warn" if hot else "ok", text, "give it air or a heat sink" if hot else "")


def _installed_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _without_cgroups() -> int:
    return memory.available_bytes(groups=Path(os.devnull))


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
