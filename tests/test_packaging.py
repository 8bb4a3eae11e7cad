"""What `pip install` gives: the catalogue inside, native kernels where a compiler is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from picoedge.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.timeout(330)  # three libraries are compiled, each of two files
BUILD = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"


def build_wheel(folder: Path, **environment: str) -> Path:
    """A wheel of a copy of this checkout, built as pip would, without its isolation."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("picoedge", "models"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pyc*"))
    subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=tree,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def native_members(wheel: Path) -> list[str]:
    return [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked as an installer would, away from the checkout."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run_installed(
    site: Path, home: Path, *args: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "PICOEDGE_HOME": str(home)}
    result = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", *args],
        cwd=home, env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert result.returncode == code, result.stderr
    return result


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"`picoedge {name}" not in readme] == []


def test_the_wheel_holds_the_catalogue_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "picoedge/models/smollm2-135m.toml" in names
    assert "picoedge/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"picoedge"}


def test_native_kernels_are_built_where_there_is_a_compiler(wheel: Path) -> None:
    compiler = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    assert bool(native_members(wheel)) is compiler
    assert wheel.name.startswith("picoedge-")
    assert wheel.name.endswith("-py3-none-any.whl") is not compiler


def test_without_a_compiler_the_wheel_is_pure(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, CC="no-such-compiler", PATH="")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert native_members(wheel) == []


def test_a_compiler_that_knows_no_level_is_no_failure(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, CC=shutil.which("false") or "/bin/false")
    assert native_members(wheel) == []


def test_the_installed_wheel_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = run_installed(installed, tmp_path, "-c", "import picoedge; print(picoedge.__file__)")
    assert where.stdout.startswith(str(installed))
    listing = run_installed(installed, tmp_path, "-m", "picoedge", "list")
    assert "smollm2-135m" in listing.stdout


def test_the_installed_wheel_pulls(installed: Path, tmp_path: Path, smollm2_gguf: Path) -> None:
    """The fetched file is there already; name, hash and packing come from the wheel."""
    shelf = tmp_path / "models"
    shelf.mkdir()
    (shelf / "smollm2-135m.gguf").symlink_to(smollm2_gguf)
    run_installed(installed, tmp_path, "-m", "picoedge", "pull", "smollm2-135m")
    assert [path.name for path in shelf.glob("[!.]*")] == ["smollm2-135m.pico"]
    assert smollm2_gguf.exists()
    run_installed(installed, tmp_path, "-m", "picoedge", "verify", "smollm2-135m")
