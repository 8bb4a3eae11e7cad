"""Boards of which only the daemon's port can be reached: the text is that of one board."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cluster_boards import ROOT, BoardOf, ClusterOf, Running, last_json, until
from shelf_models import packed_tiny

# Every Python process of a board starts with this. A worker listens at an address of which the
# others know nothing: where they look for its port, the connection is refused. A kernel that
# cannot tell marked connections from others has no second listener, so that the daemon relays all.
SITECUSTOMIZE = """
import sys
if "picoedge.cluster.worker" in sys.orig_argv:
    from picoedge.mesh.group.links import Links
    listen = Links.listen
    Links.listen = lambda links, host, *rest: listen(links, "127.0.0.2", *rest)
elif "run" in sys.orig_argv:
    from picoedge.mesh.transport import listening
    listening._attach = lambda listener: False
"""
HOW = ("-p", "The", "--raw", "--temperature", "0", "--ignore-eos", "-t", "1")
COUNT = 100


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOf]:
    folder = tmp_path_factory.mktemp("relay")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    made = ClusterOf(folder / "boards", 3)
    try:
        for board in made.boards:
            board.code = f"{folder}{os.pathsep}{ROOT}"
        made.start()
        made.shelve(packed_tiny(folder))
        yield made
    finally:
        made.end()


def generate(board: BoardOf, count: int, *more: str) -> Running:
    pack = next(board.shelf.glob("*.pico"))
    return board.run("generate", pack, *HOW, "-n", str(count), *more)


@pytest.fixture(scope="module")
def alone(cluster: ClusterOf) -> str:
    """The text of one board."""
    session = generate(cluster[1], COUNT)
    assert session.wait() == 0, session.err.text
    return session.out.text


@pytest.mark.parametrize("allreduce", ["star", "exchange"])
def test_refused_ports_do_not_change_the_text(
    cluster: ClusterOf, alone: str, allreduce: str
) -> None:
    over = ["--cluster", "-ts", "1,1,1", "--allreduce", allreduce, "--json"]
    session = generate(cluster[1], 8, *over)
    assert session.wait() == 0, session.err.text
    report = last_json(session)
    assert report["cluster"]["transports"] == {"b2": "relay", "b3": "relay"}
    assert report["cluster"]["allreduce"] == allreduce
    assert alone.startswith(report["text"])
    assert "of its worker is closed (a firewall?): its daemon" in session.err.text


@pytest.mark.parametrize(
    ("harm", "told"), [("kill", "killed: .*"), ("suspend", "its worker is stopped.*")]
)
def test_a_worker_is_lost_behind_a_relay(
    cluster: ClusterOf, alone: str, harm: str, told: str
) -> None:
    session = generate(cluster[1], COUNT, "--cluster", "-ts", "1,1")
    worker = cluster[2].worker()
    session.out.wait(r"(?s).{8}")
    names = ("b1", "b2", "b3")
    until(
        lambda: [cluster[1].seen()[name]["transport"] for name in names] == ["", "relay", ""],
        "b2 tells of its relay",
    )
    getattr(worker, harm)()
    session.err.wait(f"b2: {told}; going on", 8.0)
    assert session.wait() == 0, session.err.text
    assert session.out.text == alone
