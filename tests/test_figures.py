"""Figures of what boards say to each other: each has its reason beside it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import picoedge
from picoedge.cluster.spec import MAX_BATCH, MAX_CONTEXT
from picoedge.jobs.kept_memory import MESSAGE_BYTES
from picoedge.jobs.spec import MAX_SHARDS, SliceKey
from picoedge.mesh.identity.roster import MAX_ENTRIES
from picoedge.mesh.interfaces import MOST_HOSTS
from picoedge.mesh.node.finder import MAX_BOARDS, MAX_KEPT
from picoedge.mesh.transport.limits import Limits
from picoedge.planner.memory import BATCHES
from picoedge.store.shards import Slice

PACKAGE = Path(picoedge.__file__).parent
ROOMS = ("mesh", "daemon", "jobs", "cluster")
LITERALS = (
    *(ast.Constant, ast.BinOp, ast.UnaryOp, ast.Tuple),
    *(ast.operator, ast.unaryop, ast.expr_context),
)


def figures(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each constant of a module that is a number, or several."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            parts = list(ast.walk(node.value))
            values = [part.value for part in parts if isinstance(part, ast.Constant)]
            if all(isinstance(part, LITERALS) for part in parts) and any(
                isinstance(value, (int, float)) for value in values
            ):
                yield node.lineno, ast.unparse(node.targets[0])


def bare(source: str) -> list[str]:
    """Those without a comment beside or above them, and that no other comment names."""
    lines = source.splitlines()
    comments = "\n".join(re.findall(r"#.*", source))
    return [
        name
        for line, name in figures(source)
        if "#" not in lines[line - 1]
        and not lines[line - 2].startswith("#")
        and not re.search(rf"\b{re.escape(name)}\b", comments)
    ]


def test_figures_of_the_protocol_have_reasons() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for room in ROOMS
        for path in (PACKAGE / room).rglob("*.py")
        for name in bare(path.read_text(encoding="utf-8"))
    }
    assert found == set()


def test_the_walk_sees_what_it_should() -> None:
    source = "A = 5\nB = 1 << 20  # a reason\n# One above.\nC, D = 1.0, -2\nE = 'text'\nF = A * 2\n"
    assert list(figures(source)) == [(1, "A"), (2, "B"), (4, "(C, D)")]
    assert bare(source) == ["A"]
    assert bare(f"{source}# and A in each turn\n") == []


def test_figures_that_depend_on_others_hold() -> None:
    limits, spans = Limits(), range(MAX_SHARDS - 1, MAX_SHARDS)
    assert MAX_BOARDS == MAX_ENTRIES == limits.asks == limits.notifications
    assert MOST_HOSTS == MAX_KEPT
    assert max(BATCHES) <= MAX_BATCH
    part = Slice(spans, spans, spans, owns_head=True)
    longest = SliceKey("a" * 128, part, MAX_CONTEXT, 16, "direct", "native", "b" * 128)
    request = {"do": "keep", "slice": longest.to_json(), "model": "m" * 80}
    assert len(json.dumps(request)) < 1024 < MESSAGE_BYTES
