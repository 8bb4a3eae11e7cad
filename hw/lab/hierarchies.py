"""Where control groups may be made: version 1 (a folder for each controller) and version 2 (one).

Pure but for reading (and, in version 2, writing once) the controllers' own files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hw.lab.errors import LabError

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
V1_NAMES = {"memory": "memory", "io": "blkio", "cpu": "cpu"}
SPOKEN = {"memory": "memory", "io": "block-I/O", "cpu": "cpu"}


@dataclass(frozen=True)
class Hierarchy:
    """Folders of parents (all the same one in version 2); `cpu` is None where it is not needed."""

    version: int
    memory: Path
    io: Path
    cpu: Path | None = None


def hierarchy(
    root: Path = CGROUPS, own: Path = OWN_GROUPS, needs: Sequence[str] = ("memory", "io")
) -> Hierarchy:
    """Where a group may be made beneath the one this process is in. Raises LabError.

    `needs` are names of version 2: memory and io, and perhaps cpu.
    """
    if os.geteuid() != 0:
        raise LabError("limits need root: control groups cannot be made otherwise", "use sudo")
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError as error:
        raise LabError(f"no control groups here: {error}") from error
    if (root / "cgroup.controllers").exists():
        path = next((path for _, names, path in lines if not names), "/")
        whole = _delegating(root, path, needs)
        return Hierarchy(2, whole, whole, whole if "cpu" in needs else None)
    folders = {
        name: _own_folder(root / name, path)
        for _, names, path in lines
        for name in names.split(",")
        if name
    }
    if not {V1_NAMES[need] for need in needs} <= folders.keys():
        wanted = " and ".join(SPOKEN[need] for need in needs)
        raise LabError(f"no {wanted} controllers (neither cgroup v1 nor v2)")
    return Hierarchy(
        1, folders["memory"], folders["blkio"], folders["cpu"] if "cpu" in needs else None
    )


def _own_folder(mounted: Path, path: str) -> Path:
    """v1: this process's group; a container may see a path that is the host's, not its own."""
    folder = mounted / path.lstrip("/")
    return mounted if mounted.is_dir() and not folder.is_dir() else folder


def _delegating(root: Path, path: str, needs: Sequence[str]) -> Path:
    """v2: the nearest group above (or at) `path` whose children have the controllers.

    A group with processes of its own cannot have such children, save the root.
    """
    folder = root / path.lstrip("/")
    for level in (folder, *folder.parents):
        if set(needs) <= set(_words(level / "cgroup.subtree_control")):
            return level
        if level == root:
            break
    if not set(needs) <= set(_words(root / "cgroup.controllers")):
        raise LabError(f"cgroup v2 offers no {' and '.join(needs)} controllers here")
    write(root / "cgroup.subtree_control", " ".join(f"+{need}" for need in needs))
    return root


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def write(path: Path, text: str) -> None:
    """Write a controller's file. Raises LabError."""
    try:
        path.write_text(text)
    except OSError as error:
        raise LabError(f"cannot write {text!r} to {path}: {error.strerror}") from error
