"""Sessions over networks as they are: boards that cannot reach each other, several networks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from cluster_boards import ClusterOf, Running, last_json, until

from hw.lab import Board, Lab
from picoedge.mesh.identity.admission import Invites
from picoedge.mesh.identity.lifetime import Moment
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
    board.run(["ip", "addr", "flush", "dev", "eth0"], check=True)
    for address in addresses:
        board.run(["ip", "addr", "add", f"{address}/24", "dev", "eth0"], check=True)


def test_a_hub_on_two_networks_has_a_worker_on_each_and_one_moves(
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
        cluster[3].address = f"0.0.0.0:{PORT}"
        for board, at in ((cluster[2], one.address), (cluster[3], f"{OTHER}.1")):
            invite = Invites(cluster[1].keys).issue(f"{at}:{PORT}", key, 3600, Moment.now())
            board.start("--memory", "2G", "--join", invite, "--name", board.name)
        cluster.wait()
        cluster.shelve(smollm2_pack, [0])
        alone = answer(cluster, smollm2_pack, "-c", "256")
        assert alone.wait() == 0, alone.err.text
        session = answer(cluster, smollm2_pack, *OVER_ALL, "--allreduce", "exchange")
        assert session.wait() == 0, session.err.text
        move(three, f"{OTHER}.33")
        moved = f"{OTHER}.33:{PORT}"
        until(lambda: cluster[1].seen()["b3"]["address"] == moved, "b3 is found where it is now")
        again = answer(cluster, smollm2_pack, *OVER_ALL)
        assert again.wait() == 0, again.err.text
    finally:
        cluster.end()
    assert session.out.text == again.out.text == alone.out.text
    assert "3 boards" in again.err.text
    assert "3 boards" in session.err.text
    assert "going on" not in session.err.text, session.err.text


def only_link_local(board: Board) -> str:
    """Leave a board the address alone that has a meaning on its link; returns it."""
    board.run(["ip", "addr", "flush", "dev", "eth0"], check=True)
    for setting in ("eth0/accept_dad", "all/disable_ipv6", "eth0/disable_ipv6"):
        path = f"/proc/sys/net/ipv6/conf/{setting}"
        board.run(["sh", "-c", f"echo 0 >{path}"], check=True)
    shown = board.run(["ip", "-o", "-6", "addr", "show", "dev", "eth0"], check=True).stdout
    found = re.search(r"fe80:[0-9a-f:]+", shown)
    assert found, shown
    return found[0]


def test_boards_that_have_link_local_addresses_alone(
    lab: MakeLab, smollm2_pack: Path, tmp_path: Path
) -> None:
    made = lab(2)
    hosts = [only_link_local(board) for board in made.boards]
    made.boards[1].run(["ip", "link", "set", "eth0", "down"], check=True)
    made.boards[1].run(["ip", "link", "set", "eth0", "name", "end0"], check=True)
    made.boards[1].run(["ip", "link", "set", "end0", "up"], check=True)
    cluster = ClusterOf(tmp_path, 2, labs=made.boards)
    try:
        cluster[1].address = f"[{hosts[0]}%eth0]:{PORT}"
        cluster[2].address = f"[::]:{PORT}"
        cluster[1].start("--memory", "2G")
        invited = cluster[1].run("keys", "invite", "--json")
        assert invited.wait() == 0, invited.err.text
        invite = json.loads(invited.out.text)
        assert invite["addresses"] == [cluster[1].address]
        cluster[2].start("--memory", "2G", "--join", invite["invite"], "--name", "b2")
        cluster.wait()
        cluster.shelve(smollm2_pack, [0])
        alone = answer(cluster, smollm2_pack, "-c", "256")
        assert alone.wait() == 0, alone.err.text
        session = answer(cluster, smollm2_pack, "-c", "256", "--cluster", "--boards", "2")
        assert session.wait() == 0, session.err.text
    finally:
        cluster.end()
    assert session.out.text == alone.out.text
    assert "2 boards" in session.err.text


def test_no_port_is_open_but_the_daemons_and_a_range(
    lab: MakeLab, smollm2_pack: Path, tmp_path: Path
) -> None:
    """Shards and sums come by the daemon's port on b1 and b2, and by the range as well on b3."""
    made = lab(3)
    cluster = ClusterOf(tmp_path, 3, labs=made.boards)
    for board, at in zip(cluster.boards, made.boards, strict=True):
        board.address = f"{at.address}:{PORT}"
        at.close_ports(PORT, *(range(PORT + 1, PORT + 4) if board.name == "b3" else ()))
    try:
        cluster.start(more={"b3": ("--ports", f"{PORT + 1}-{PORT + 3}")})
        cluster.shelve(smollm2_pack, [0])
        alone = answer(cluster, smollm2_pack, "-c", "256")
        assert alone.wait() == 0, alone.err.text
        session = answer(cluster, smollm2_pack, *OVER_ALL, "--allreduce", "exchange", "--json")
        assert session.wait() == 0, session.err.text
        made.link(1, 2).cut()
        doctor = cluster[1].run("doctor", "--cluster", "--json")
        assert doctor.wait() == 0, doctor.err.text  # no board is out of b1's reach
    finally:
        cluster.end()
    checks = {check["name"]: check for check in json.loads(doctor.out.text)}
    assert len(checks) == 6
    assert f"sums come by port {PORT}" in checks["b1 to b2"]["text"]
    assert "and its workers' ports" in checks["b1 to b3"]["text"]
    assert f"ufw allow {PORT}/tcp" in checks["b3 to b2"]["remedy"], checks
    report = last_json(session)
    assert report["text"] == alone.out.text.removesuffix("\n")
    assert report["boards"] == 3
    assert report["cluster"]["allreduce"] == "exchange"
    told = (
        rf"b2: port \d+ of its worker is closed \(a firewall\?\): .* port {PORT} carries the sums"
    )
    assert re.search(told, session.err.text), session.err.text
    assert "b3: port" not in session.err.text
