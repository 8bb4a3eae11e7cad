"""Imports run downward only (the floors of ARCHITECTURE.md), also those inside functions."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import picoedge

PACKAGE = Path(picoedge.__file__).parent
FLOORS = {
    "errors": -1,  # the one leaf that the other leaves may import
    "__init__": 0,
    "units": 0,
    "config": 0,
    "kernels": 1,
    "store": 2,
    "text": 2,
    "model": 3,
    "mesh": 4,
    "engine": 5,
    "train": 5,
    "serve": 6,
    "cli": 7,
    "__main__": 8,
}


def room_of(module: str) -> str:
    """`picoedge.store.pack.packer` is in the room `store`; `picoedge` itself in `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "__init__"


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        yield name, ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported anywhere in the tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward(module: str, tree: ast.AST) -> list[str]:
    """Imports of `module` that go up, or sideways into another room."""
    here = room_of(module)
    ours = [name for name in imports(tree) if name.split(".")[0] == "picoedge"]
    return [
        f"{module} imports {name}"
        for name in ours
        if room_of(name) != here and FLOORS[room_of(name)] >= FLOORS[here]
    ]


def test_imports_run_downward_only() -> None:
    assert [line for name, tree in modules() for line in upward(name, tree)] == []


@pytest.mark.parametrize(
    ("module", "source", "ok"),
    [
        ("picoedge.registry.shelf", "from picoedge.store.pack.packer import pack", True),
        ("picoedge.registry.shelf", "from picoedge.engine import catalogue", True),
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
