"""Find the control groups of this process, in which the limits of a container are set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from picoedge.host.sysfs import read_text

ROOT = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")


def levels(controller: str, root: Path = ROOT, groups: Path = GROUPS) -> Iterator[tuple[Path, int]]:
    """(folder, cgroup version 1 or 2) of each group with `controller`, innermost first.

    A container may see its own group as the root, so the root is a level as well.
    """
    for line in read_text(groups).splitlines():
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
