"""Sessions over networks as they are: boards that cannot reach each other, several networks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cluster_boards import ClusterOf, Running

from hw.lab import Board, Lab
from picoedge.mesh.identity.admission import Invites
from picoedge.mesh.identity.roster import RosterFile

pytest_plugins = ["lab_fixtures"]

MakeLab = Callable[..., Lab]

HOW = ["-p", "Once upon a time", "--temperature", "0", "--raw", "--ignore-eos", "-t", "1"]
OVER_ALL = ["-c", "256", "--cluster", "--boards", "3"]
OTHER = "10.78.9"  # a second network, on the same cable
PORT = 7433


def answer(cluster: ClusterOf, pack: Path, *more: str) -> Running:
    """Eight greedy tokens of b1."""
    return cluster[1].run("generate", pack, "-n", "8", *HOW, *more)


def move(board: Board, *addresses: str) -> None:
    """Give a board these addresses alone, without a way to other networks."""
    for words in (["route", "del", "default"], ["addr", "flush", "dev", "eth0"]):
        board.run(["ip", *words], check=True)
    for address in addresses:
        board.run(["ip", "addr", "add", f"{address}/24", "dev", "eth0"], check=True)


def test_a_hub_on_two_networks_has_a_worker_on_each(
    lab: MakeLab, smollm2_pack: Path, tmp_path: Path
) -> None:
    """Each is told the address of the hub that it can reach; they do not reach each other."""
    made = lab(3)
    one, two, three = made.boards
    move(one, one.address, f"{OTHER}.1")
    move(two, two.address)
    move(three, f"{OTHER}.3")
    cluster = ClusterOf(tmp_path, 3, labs=made.boards)
    try:
        cluster[1].address = f"0.0.0.0:{PORT}"
        cluster[1].start("--memory", "2G")
        key = RosterFile(cluster[1].keys).roster.cluster.key
        cluster[3].address = f"{OTHER}.3:{PORT}"
        for board, at in ((cluster[2], one.address), (cluster[3], f"{OTHER}.1")):
            invite = Invites(cluster[1].keys).issue(f"{at}:{PORT}", key, 3600, time.time())
            board.start("--memory", "2G", "--join", invite, "--name", board.name)
        cluster.wait()
        cluster.shelve(smollm2_pack, [0])
        alone = answer(cluster, smollm2_pack, "-c", "256")
        assert alone.wait() == 0, alone.err.text
        session = answer(cluster, smollm2_pack, *OVER_ALL, "--allreduce", "exchange")
        assert session.wait() == 0, session.err.text
    finally:
        cluster.end()
    assert session.out.text == alone.out.text
    assert "3 boards" in session.err.text
    assert "cannot be reached" in session.err.text
    assert "going on" not in session.err.text, session.err.text
