"""Imports run downward only (the floors of ARCHITECTURE.md), also those inside functions."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path

import pytest

import picoedge

PACKAGE = Path(picoedge.__file__).parent
FLOORS = {
    "errors": -1,  # the one leaf that the other leaves may import
    "__init__": 0,
    "units": 0,
    "config": 0,
    "suggest": 0,
    "fields": 0,
    "progress": 0,
    "sanitize": 0,
    "files": 1,
    "kernels": 1,
    "chats": 2,
    "store": 2,
    "text": 2,
    "model": 3,
    "host": 3,
    "mesh": 4,
    "registry": 4,
    "planner": 5,
    "engine": 6,
    "jobs": 7,
    "cluster": 8,
    "train": 8,
    "daemon": 9,
    "serve": 9,
    "cli": 10,
    "__main__": 11,
}
# Floors of the rooms inside a room; files that lie beside them are on its ground floor.
INNER_FLOORS = {
    "kernels": {"reference": 1},
    "store": {"sources": 1, "pack": 2, "export": 3, "window": 3},
    "mesh": {"identity": 1, "transport": 2, "node": 3, "group": 3, "transfer": 3, "consensus": 4},
}
INNER_TOP = {"picoedge.kernels.loader", "picoedge.kernels.native"}  # they pick from `reference`
MOST_FILES, MOST_LINES = 14, 400
IMPURE = {"os", "time", "socket", "zmq", "subprocess", "pathlib"}


def room_of(module: str) -> str:
    """`picoedge.store.pack.reader` is in `store`; `picoedge` itself in `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "__init__"


def inner_floor(module: str) -> tuple[str, int]:
    """The room inside a room that a module is in, and its floor there."""
    parts = module.split(".")
    inner = parts[2] if len(parts) > 2 else ""
    return inner, INNER_FLOORS.get(room_of(module), {}).get(inner, 0)


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        yield name, ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of the imports anywhere in the tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(tree: ast.AST) -> list[str]:
    return [name for name in imports(tree) if name.split(".")[0] == "picoedge"]


def goes_up(module: str, imported: str) -> bool:
    """Whether an import leads to a higher floor, or sideways into another room."""
    here, there = room_of(module), room_of(imported)
    if here != there:
        return FLOORS[there] >= FLOORS[here]
    (room, floor), (other, up) = inner_floor(module), inner_floor(imported)
    return module not in INNER_TOP and up > 0 and room != other and up >= floor


def upward(module: str, tree: ast.AST) -> list[str]:
    """Imports of `module` that go up, or sideways into another room."""
    return [f"{module} imports {name}" for name in ours(tree) if goes_up(module, name)]


def test_imports_run_downward_only() -> None:
    found = {line for name, tree in modules() for line in upward(name, tree)}
    assert not found


def test_imports_form_no_circle() -> None:
    trees = {name.removesuffix(".__init__"): tree for name, tree in modules()}
    arrows = {name: set(files_imported(trees, tree)) for name, tree in trees.items()}
    assert not circles(arrows)


def circles(arrows: dict[str, set[str]]) -> set[str]:
    """The modules in circles: those left after removing, again and again, the ends of chains."""
    left = dict(arrows)
    while True:
        imported = {name for out in left.values() for name in out}
        inner = {name: out & left.keys() for name, out in left.items() if name in imported}
        kept = {name: out for name, out in inner.items() if out}
        if kept == left:
            return set(left)
        left = kept


def files_imported(files: Container[str], tree: ast.AST) -> Iterator[str]:
    for name in ours(tree):
        yield name if name in files else name.rpartition(".")[0]


def test_a_folder_is_taken_in_at_once() -> None:
    counts = Counter(
        str(path.parent.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    )
    del counts["cli"]  # it grows with the commands, and is found by their names
    benches = PACKAGE.parent / "bench"
    counts.update(
        str(path.parent.relative_to(benches))
        for path in benches.rglob("*.py")
        if path.name != "__init__.py" and path.parent != benches
    )
    assert {folder: n for folder, n in counts.items() if n > MOST_FILES} == {}


def test_a_file_is_taken_in_at_once() -> None:
    long = {
        str(path.relative_to(PACKAGE.parent)): lines
        for room in ("picoedge", "bench", "fuzz", "hw", "tests")
        for path in (PACKAGE.parent / room).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert long == {}


def test_plans_are_made_from_figures_alone() -> None:
    roots = {
        f"{module} imports {name}"
        for module, tree in modules()
        if room_of(module) == "planner"
        for name in imports(tree)
        if name.split(".")[0] in IMPURE
    }
    assert roots == set()


def test_agreement_knows_no_clock_socket_file_or_chance() -> None:
    impure = {
        f"{module} imports {name}"
        for module, tree in modules()
        if module.startswith("picoedge.mesh.consensus") and not module.endswith(".service")
        for name in imports(tree)
        if name.split(".")[0] in {*IMPURE, "random", "secrets", "threading", "numpy"}
    }
    assert impure == set()


@pytest.mark.parametrize(
    ("module", "source", "ok"),
    [
        ("picoedge.registry.shelf", "from picoedge.store.pack.packer import pack", True),
        ("picoedge.registry.shelf", "from picoedge.registry import catalogue", True),
        ("picoedge.store.pack.packer", "def f():\n    from picoedge.engine import shelf", False),
        ("picoedge.store.pack.packer", "import picoedge.text.export.export", False),
        ("picoedge.text.export.export", "from picoedge import store", False),
        ("picoedge.units", "from picoedge.errors import UsageError", True),
        ("picoedge.errors", "from picoedge.units import parse_size", False),
    ],
)
def test_the_walk_sees_what_it_should(module: str, source: str, ok: bool) -> None:
    assert (upward(module, ast.parse(source)) == []) is ok


def test_every_file_is_in_a_known_room() -> None:
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    assert {file.parts[0].removesuffix(".py") for file in files} <= FLOORS.keys()


def test_command_files_import_no_third_party_at_the_top() -> None:
    allowed = {*sys.stdlib_module_names, "picoedge", "click"}
    heavy = [
        f"{name}: {imported}"
        for name, tree in modules()
        if room_of(name) == "cli"
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for imported in imports(node)
        if imported.split(".")[0] not in allowed
    ]
    assert heavy == []


def test_the_mesh_knows_no_model() -> None:
    words = re.compile("attention|ffn|logits|hidden", re.IGNORECASE)
    files = (PACKAGE / "mesh").rglob("*.py")
    named = {
        f"{path.name}: {line.strip()}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if words.search(line)
    }
    assert named == set()
