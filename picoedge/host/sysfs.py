"""Read the small files under /sys and /proc in which the kernel reports its state and limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

SYS = Path("/sys")
PROC = Path("/proc")
CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def file_text(file: Path) -> str:
    """The file's text without outer whitespace; "" where it is absent or cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""


def file_int(file: Path, base: int = 10) -> int | None:
    """The integer in a file; None where it is absent or holds something else, like `max`."""
    try:
        return int(file_text(file), base)
    except ValueError:
        return None


def file_fields(file: Path) -> dict[str, str]:
    """The lines of a file like /proc/meminfo, as {first word without its colon: rest}."""
    lines = (line.replace(":", " ", 1).split(maxsplit=1) for line in file_text(file).splitlines())
    return {words[0]: words[1] for words in lines if len(words) == 2}


def cgroup_levels(
    controller: str, root: Path = CGROUP_ROOT, groups: Path = OWN_CGROUPS
) -> Iterator[tuple[Path, int]]:
    """(folder, cgroup version 1 or 2) of each cgroup of this process, innermost first.

    Only cgroups that `controller` ("memory", "cpu", "blkio") may limit.

    A container may see its own group as the root, so the root is a level as well.
    """
    for line in file_text(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from ((folder, 2) for folder in _upward(root, path))
        elif controller in controllers.split(","):
            yield from ((folder, 1) for folder in _upward(root / controller, path))


def _upward(base: Path, path: str) -> Iterator[Path]:
    folder = base / path.lstrip("/")
    for level in [folder, *folder.parents]:
        yield level
        if level == base:
            return
