"""Sessions over emulated boards: cables that are pulled, cards that take long."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_boards import ClusterOf, Running, cluster_of, until

from hw.lab import Lab, LabError
from hw.lab.disks import disk_of

pytest_plugins = ["lab_fixtures"]

MakeLab = Callable[..., Lab]

PROMPT = "Once upon a time there was a board that"
HOW = ["--temperature", "0", "--raw", "--ignore-eos", "-t", "1", "-c", "256"]
STUCK_S = 4.0
SOME_WORDS = r"\w+ \w+ \w+ \w+"


def answer(cluster: ClusterOf, pack: Path, count: int, *more: str) -> Running:
    """A greedy answer of b1."""
    return cluster[1].run("generate", pack, "-p", PROMPT, "-n", str(count), *HOW, *more)


def undisturbed(cluster: ClusterOf, pack: Path, count: int) -> str:
    """What b1 says alone."""
    session = answer(cluster, pack, count)
    assert session.wait() == 0, session.err.text
    return session.out.text


def test_a_cable_is_pulled_and_put_in_again(
    lab: MakeLab, smollm2_pack: Path, tmp_path: Path
) -> None:
    made = lab(3)
    with cluster_of(tmp_path, 3, labs=made.boards) as cluster:
        cluster.shelve(smollm2_pack)
        session = answer(cluster, smollm2_pack, 50, "--cluster", "--boards", "3")
        session.out.wait(SOME_WORDS)
        made.boards[1].cut()
        session.err.wait(r"b2.*; \d\.\d s ago it reported: \w.*; going on", 8.0)
        assert session.wait() == 0, session.err.text
        assert session.out.text == undisturbed(cluster, smollm2_pack, 50)
        cluster[2].await_free(10.0)
        made.boards[1].heal()
        cluster.wait()
        again = answer(cluster, smollm2_pack, 4, "--cluster", "--boards", "3")
        assert again.wait() == 0, again.err.text
        assert "3 boards" in again.err.text


def test_a_board_that_waits_for_its_disk_is_waited_for(
    lab: MakeLab, smollm2_pack: Path, tmp_path: Path
) -> None:
    try:
        disk_of(tmp_path)
    except LabError as error:
        pytest.skip(str(error))
    made = lab(2, None, folder=tmp_path)
    with cluster_of(tmp_path, 2, ["1G", "110M"], labs=made.boards) as cluster:
        cluster.shelve(smollm2_pack, [0])
        own = made.boards[1].copy(smollm2_pack)
        (cluster[2].shelf / smollm2_pack.name).symlink_to(own)
        over = ["--cluster", "-ts", "1,8", "--window-io", "direct"]
        session = answer(cluster, smollm2_pack, 16, *over)
        session.out.wait(r"\w+")
        made.boards[1].limit(disk_bytes_per_s=100 << 10)
        until(lambda: cluster[1].seen()["b2"]["how"] == "disk", "its disk is slow", 10.0)
        length, until_s = len(session.out.text), time.monotonic() + STUCK_S
        while time.monotonic() < until_s:  # longer than anything that is dead is waited for
            assert cluster[1].seen()["b2"]["condition"] in ("alive", "slow")
        made.boards[1].unlimit(disk=True)
        assert session.wait() == 0, session.err.text
        assert length < len(session.out.text)
        assert not re.search(r"b2.*going on", session.err.text), session.err.text
        assert session.out.text == undisturbed(cluster, smollm2_pack, 16)
