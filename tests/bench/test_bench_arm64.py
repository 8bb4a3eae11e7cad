"""What the bench compiles for aarch64 is what the build compiles there."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from bench.children import ROOT, BenchError
from bench.train_arm64 import PROCESSORS, emulated_python, flags_of
from bench.train_levels import LEVELS


def constant(name: str) -> Any:
    """A constant of setup.py, which is not to be run."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
    raise AssertionError(name)


@pytest.mark.parametrize("level", PROCESSORS)
def test_a_level_has_the_flags_of_the_build(level: str) -> None:
    common = ast.literal_eval(constant("COMMON"))
    levels = constant("LEVELS")
    (of_arm,) = (
        value
        for key, value in zip(levels.keys, levels.values, strict=True)
        if ast.literal_eval(key) == "aarch64"
    )
    assert flags_of(level) == [*common, *ast.literal_eval(of_arm)[level].split()]


def test_each_level_has_a_processor() -> None:
    assert tuple(PROCESSORS) == LEVELS["aarch64"]
    with pytest.raises(BenchError, match="no flags for avx9"):
        flags_of("avx9")


def test_the_interpreter_is_the_unpacked_one(tmp_path: Path) -> None:
    binaries = tmp_path / "usr" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python3", "python3.11"):
        (binaries / name).touch()
    command = emulated_python(tmp_path, "max")
    assert command[:3] == ["qemu-aarch64-static", "-cpu", "max"]
    assert command[-1] == str(binaries / "python3.11")
