"""Sessions over boards of which one has no room on its disk for its part of the model."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cluster_boards import ClusterOf, Running, last_json
from shelf_models import packed_tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
]


def small_disk(stack: ExitStack, folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    stack.callback(subprocess.run, ["umount", "-l", folder], check=True)


@pytest.fixture(scope="module", params=["full", "read-only"])
def state(request: pytest.FixtureRequest) -> str:
    """The fault of b2's disk."""
    return str(request.param)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, state: str) -> Iterator[ClusterOf]:
    """Three boards, of which the first has the model."""
    folder = tmp_path_factory.mktemp("full")
    with ExitStack() as stack:
        made = ClusterOf(folder / "cluster", 3)
        small_disk(stack, made[2].shelf, "size=6m" if state == "full" else "ro")
        made.shelve(packed_tiny(folder), [0])
        stack.callback(made.end)
        made.start()
        yield made


def ask(cluster: ClusterOf, *extra: str) -> Running:
    (pack,) = cluster[1].shelf.glob("*.pico")
    return cluster[1].run(
        "generate", pack, "--raw", "-p", "the quick", "-n", "4", "--temperature", "0", "--json",
        "--ignore-eos", "--cluster", *extra,
    )  # fmt: skip


def test_the_session_goes_on_over_the_others(cluster: ClusterOf, state: str) -> None:
    # No figure tells of a disk that takes no writes: the worker fails in its pull.
    wanted = ("--boards", "2") if state == "full" else ("-ts", "1,1")
    asked = ask(cluster, *wanted)
    assert asked.wait() == 0, asked.err.text
    shares = last_json(asked)["cluster"]["shares"]
    assert [share["board"] for share in shares] == ["b1", "b3"]
    if state != "full":
        assert "b2: cannot write below" in asked.err.text
        assert "going on without it" in asked.err.text


@pytest.mark.parametrize("state", ["full"], indirect=True, scope="module")
def test_a_full_disk_is_refused_before_anything_is_written(cluster: ClusterOf) -> None:
    asked = ask(cluster, "-ts", "1,1")
    assert asked.wait() == 1
    assert "a disk has no room for its part of the model: b2: " in asked.err.text
    assert "needed, 6 MB free" in asked.err.text
    assert list(cluster[2].shelf.glob("*.pico*")) == []
    planned = cluster[1].run("plan", *cluster[1].shelf.glob("*.pico"), "--cluster", "-ts", "1,1")
    assert planned.wait() == 1
    assert "needed, 6 MB free" in planned.err.text
