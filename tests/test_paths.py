"""Tests read and write in folders of their own: no absolute path in them leads elsewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ALLOWED = {
    "/proc": "what the kernel says of processes; no program makes a file there, not even root's",
    "/sys": "what it says of devices, likewise",
    "/dev/null": "is on every board, and empty",
    "/dev/zero": "is on every board, and endless",
    "/dev/full": "is on every board, and full",
    "/bin": "has programs that every board has",
}
CALLS = {  # of functions whose arguments are paths, and of the one that sets variables to them
    *("Path", "open", "symlink_to", "hardlink_to", "joinpath", "listdir", "scandir", "readlink"),
    *("stat", "mkdir", "makedirs", "unlink", "remove", "rmtree", "chdir", "chmod", "copy"),
    *("copyfile", "copytree", "move", "link", "symlink", "mkfifo", "utime", "access", "setenv"),
}
VARIABLE = re.compile("[A-Z][A-Z_0-9]+")  # of the environment


def text_of(node: ast.expr | None) -> str:
    """A string as it begins: all of a constant, an f-string to its first value."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
            return text
        case ast.BinOp(left=left, op=ast.Add()):
            return text_of(left)
    return ""


def expressions(tree: ast.AST) -> Iterator[ast.expr]:
    """The expressions in places that take a path."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in CALLS:
                yield from node.args
            case ast.keyword(arg="cwd" | "dir" | "folder" | "path", value=value):
                yield value
            case ast.BinOp(op=ast.Div(), right=right):
                yield right
            case ast.List(elts=words) | ast.Tuple(elts=words):
                yield from (word for option, word in pairwise(words) if is_option(option))
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                yield from (value for key, value in pairs if VARIABLE.fullmatch(text_of(key)))


def is_option(node: ast.expr) -> bool:
    """Whether a word of a command is an option, which may have a path after it."""
    return text_of(node).startswith("-")


def programs(tree: ast.AST) -> Iterator[ast.AST]:
    """The tree, and those of the programs that it has as strings."""
    yield tree
    for node in ast.walk(tree):
        if "(" in (text := text_of(node) if isinstance(node, ast.expr) else ""):
            try:
                yield ast.parse(text)
            except (SyntaxError, ValueError):
                continue


def strays(source: str) -> list[str]:
    """Absolute paths in a test's source that are not ALLOWED."""
    texts = (
        text_of(node).partition("=")[2] if is_option(node) else text_of(node)
        for tree in programs(ast.parse(source))
        for node in expressions(tree)
    )
    return [
        text
        for text in texts
        if text.startswith("/")
        and not any(text == prefix or text.startswith(f"{prefix}/") for prefix in ALLOWED)
    ]


def test_tests_name_no_paths_outside_their_folders() -> None:
    found = {
        f"{path.relative_to(TESTS)}: {text}"
        for path in TESTS.rglob("*.py")
        if path != Path(__file__)
        for text in strays(path.read_text(encoding="utf-8"))
    }
    assert found == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('Path("/gone")', ["/gone"]),
        ('open(f"/tmp/{name}")', ["/tmp/"]),
        ('run("chat", *["--chat-template", "/gone"])', ["/gone"]),
        ('case = (["-o", "/out"], "no such folder")', ["/out"]),
        ('monkeypatch.setenv("PICOEDGE_HOME", "/p")', ["/p"]),
        ('shelf_folder({"HOME": "/h"})', ["/h"]),
        ('link.symlink_to("/etc/passwd")', ["/etc/passwd"]),
        ('run(tmp_path / "/etc")', ["/etc"]),
        ('run(words, cwd="/tmp")', ["/tmp"]),
        ("run([python, '-c', 'import os; os.mkdir(\"/made\")'])", ["/made"]),
        ('Path("/proc/self/status"), open("/dev/full"), Path("/dev/fullest")', ["/dev/fullest"]),
        ('talk("/bye"); {"item": "/etc/passwd"}; tmp_path / "gone"', []),
    ],
)
def test_the_walk_sees_what_it_should(source: str, found: list[str]) -> None:
    assert strays(source) == found
