"""Answers of `data/where.md`: the file that decides exists and defines the name given."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import picoedge

PACKAGE = Path(picoedge.__file__).parent
QUESTIONS = Path(__file__).parent / "data" / "where.md"


def answers() -> list[tuple[str, str, str]]:
    rows = [line.strip("|").split("|") for line in QUESTIONS.read_text().splitlines()]
    cells = [tuple(cell.strip() for cell in row) for row in rows]
    return [(row[0], row[1], row[2]) for row in cells if len(row) == 3 and row[1].endswith(".py")]


def test_there_are_24_questions_with_24_answers() -> None:
    assert len(answers()) == len({file for _, file, _ in answers()}) == 24


@pytest.mark.parametrize(("question", "file", "name"), answers(), ids=lambda text: text[:50])
def test_the_file_that_decides_is_there(question: str, file: str, name: str) -> None:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    defined = {getattr(node, "name", "") for node in tree.body}
    assert not name or name in defined, question
