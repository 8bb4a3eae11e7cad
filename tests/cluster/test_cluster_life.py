"""A session over boards from beginning to end: commands and daemons as people run them."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cluster_boards import BoardOf, ClusterOf, Running, cluster_of, measured_as, until

from picoedge.cluster.load import load_over_boards
from picoedge.cluster.worker_group import WorkerGroup
from picoedge.engine.options import OpenOptions
from picoedge.errors import BoardLostError, MeshError
from picoedge.planner.cluster_plan import ClusterOptions
from picoedge.store.pack.reader import Pack

PROMPT = "Once upon a time there was a board that"
SHORT = 8
LONG = 400  # more than a test waits for


def generate(board: BoardOf, pack: Path, count: int, *more: str) -> Running:
    """A greedy session of that board."""
    how = ["-n", str(count), "--temperature", "0", "--raw", "--ignore-eos", "-c", "512", "-t", "1"]
    return board.run("generate", pack, "-p", PROMPT, *how, *more)


def over(board: BoardOf, pack: Path, count: int, boards: int = 2, *more: str) -> Running:
    """The same, over so many boards."""
    return generate(board, pack, count, "--cluster", "--boards", str(boards), *more)


@pytest.fixture(scope="module")
def cluster(smollm2_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOf]:
    with cluster_of(tmp_path_factory.mktemp("life"), 2) as made:
        made.shelve(smollm2_pack)
        yield made
        assert [board.stop() for board in made.boards] == [0, 0]


@pytest.fixture(autouse=True)
def free_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a board taken."""
    yield
    if "cluster" in request.fixturenames:
        for board in request.getfixturevalue("cluster").boards:
            board.await_free()


# -- to its end --------------------------------------------------------------------------------


def test_a_session_ends_by_itself(cluster: ClusterOf, smollm2_pack: Path) -> None:
    session = over(cluster[1], smollm2_pack, SHORT)
    worker = cluster[2].worker()
    assert session.wait() == 0
    assert "2 boards" in session.err.text
    worker.wait(2)
    assert cluster[1].does() == cluster[2].does() == "free"


def test_shards_are_pulled_once(smollm2_pack: Path, tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        first = halves(cluster[1], smollm2_pack)
        assert first.wait() == 0, first.err.text
        files = pulled_to(cluster[2])
        assert 0 < sum(path.stat().st_blocks * 512 for path in files) < size_of(smollm2_pack)
        again = halves(cluster[1], smollm2_pack)
        assert again.wait() == 0, again.err.text
        assert pulled_to(cluster[2]) == files
        assert first.out.text == again.out.text
        assert "pulling" not in again.err.text


def halves(board: BoardOf, pack: Path) -> Running:
    """A session over both boards, whatever is measured of them."""
    return generate(board, pack, SHORT, "--cluster", "-ts", "1,1")


def pulled_to(board: BoardOf) -> dict[Path, int]:
    """The files of the one pack on its shelf, and when each was written."""
    (pulled,) = board.shelf.glob("*.pico")
    return {path: path.stat().st_mtime_ns for path in pulled.iterdir()}


def test_nothing_is_pulled_again_because_measures_moved(
    smollm2_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack.open(smollm2_pack)
    with cluster_of(tmp_path, 2) as cluster:
        cluster[1].lend_environ(monkeypatch)
        first = shares_of_session(pack, monkeypatch, 1.38)
        files = pulled_to(cluster[2])
        assert [len(ffn) for _, ffn in first] == [4, 2]
        assert shares_of_session(pack, monkeypatch, 1.28) == first
        assert pulled_to(cluster[2]) == files
        other = shares_of_session(pack, monkeypatch, 0.5)
        assert [len(ffn) for _, ffn in other] == [2, 4]
        assert pulled_to(cluster[2]) != files


def shares_of_session(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, speed: float
) -> list[tuple[range, range]]:
    """What each of two boards gets where the hub is measured to be `speed` times as quick."""
    how = OpenOptions(threads=1, n_ctx=128, cluster=ClusterOptions(boards=2))
    with monkeypatch.context() as patch:
        measured_as(patch, speed, 1.0)
        with closing(load_over_boards(pack, how)) as model:
            model.forward([1, 2, 3], 0)
            parts = [share.part for share in model.plan.chosen.shares]
    return [(part.attention, part.ffn) for part in parts]


def size_of(pack: Path) -> int:
    return sum(path.stat().st_size for path in pack.iterdir())


# -- two at a time -----------------------------------------------------------------------------


def test_the_second_session_waits_and_names_the_holder(
    cluster: ClusterOf, smollm2_pack: Path
) -> None:
    first = over(cluster[1], smollm2_pack, LONG)
    first.out.wait(r"\w")
    second = over(cluster[2], smollm2_pack, SHORT)
    second.err.wait(r"waiting for b[12]: it is taken by a session of b1$")
    assert first.process.poll() is None
    first.signal(signal.SIGINT)
    assert first.wait() == 130
    assert second.wait() == 0, second.err.text
    third = generate(cluster[1], smollm2_pack, SHORT)
    assert third.wait() == 0
    assert second.out.text == third.out.text


def test_a_waiting_session_can_leave(cluster: ClusterOf, smollm2_pack: Path) -> None:
    first = over(cluster[1], smollm2_pack, LONG)
    first.out.wait(r"\w")
    second = over(cluster[2], smollm2_pack, SHORT)
    until(lambda: waiting(cluster) == 1, "it waits")
    second.signal(signal.SIGINT)
    assert second.wait() == 130
    until(lambda: waiting(cluster) == 0, "it has left", 2.0)
    first.signal(signal.SIGINT)
    assert first.wait() == 130


def test_a_waiting_session_is_told_its_place_once(cluster: ClusterOf) -> None:
    with cluster[2].calling() as holder, cluster[2].calling() as second:
        holder.ask("job-reserve")
        with pytest.raises(BoardLostError, match="is silent"):
            second.ask("job-reserve", timeout_s=0.5)
        for _ in range(5):  # connections come and go
            assert cluster[2].does() == "hub"
        queued = {"place": 1, "holder": "b2"}
        assert [body for kind, body in second.notifications() if kind == "job-queued"] == [queued]
    until(lambda: cluster[2].does() == "free", "b2 is free")


def test_a_connection_waits_for_a_board_once(cluster: ClusterOf) -> None:
    with cluster[2].calling() as holder, cluster[2].calling() as second:
        holder.ask("job-reserve")
        with pytest.raises(BoardLostError, match="is silent"):
            second.ask("job-reserve", timeout_s=0.5)
        with pytest.raises(BoardLostError, match="its connection ended"):
            second.ask("job-reserve")
        until(lambda: waiting(cluster) == 0, "a session that asks twice is let go")
    until(lambda: cluster[2].does() == "free", "b2 is free")


def waiting(cluster: ClusterOf) -> int:
    """Sessions in all queues."""
    return sum(board.seen()[board.name]["queue_length"] for board in cluster.boards)


# -- broken off --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_boards_are_free_when_the_hub_is_gone(
    cluster: ClusterOf, smollm2_pack: Path, number: int
) -> None:
    session = over(cluster[1], smollm2_pack, LONG)
    worker = cluster[2].worker()
    session.out.wait(r"\w")
    began = time.monotonic()
    session.signal(number)
    worker.wait(3)
    until(lambda: cluster[2].does() == "free", "b2 is free")
    until(lambda: cluster[1].does() == "free", "b1 is free")
    assert time.monotonic() - began < 2.0
    assert session.wait() == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in session.err.text


def test_a_board_is_free_when_the_hub_goes_while_it_loads(
    cluster: ClusterOf, smollm2_pack: Path
) -> None:
    session = over(cluster[1], smollm2_pack, LONG)
    worker = cluster[2].worker()
    session.signal(signal.SIGKILL)
    worker.wait(3)


def test_a_daemon_that_is_told_to_end_takes_its_worker_along(
    cluster: ClusterOf, smollm2_pack: Path
) -> None:
    session = over(cluster[1], smollm2_pack, 60)
    worker = cluster[2].worker()
    session.out.wait(r"\w+ \w+ \w+")
    assert cluster[2].stop() == 0
    worker.wait(1)
    assert not (cluster[2].keys / "daemon.json").exists()
    assert session.wait() == 0, session.err.text
    alone = generate(cluster[1], smollm2_pack, 60)
    assert alone.wait() == 0
    assert session.out.text == alone.out.text
    assert "b2" in session.err.text
    cluster[2].start("--memory", "2G")
    cluster.wait()


# -- what cannot be ----------------------------------------------------------------------------


def test_boards_without_enough_memory(smollm2_pack: Path, tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2, "75M") as cluster:
        cluster.shelve(smollm2_pack)
        session = over(cluster[1], smollm2_pack, SHORT)
        assert session.wait() == 1
        assert "MB" in session.err.text
        assert "Traceback" not in session.err.text
        assert session.out.text == ""


def test_no_daemon_on_this_board(smollm2_pack: Path, tmp_path: Path) -> None:
    with cluster_of(tmp_path, 1) as cluster:
        assert cluster[1].stop() == 0
        session = generate(cluster[1], smollm2_pack, SHORT, "--cluster")
        assert session.wait() == 1
        assert "picoedge run" in session.err.text
        assert session.err.text.count("\n") == 1


def test_not_in_a_cluster(smollm2_pack: Path, tmp_path: Path) -> None:
    board = BoardOf("alone", tmp_path / "alone")
    session = generate(board, smollm2_pack, SHORT, "--cluster")
    assert session.wait() == 1
    assert "is in no cluster" in session.err.text
    assert "picoedge keys init" in session.err.text


def test_more_boards_than_there_are(cluster: ClusterOf, smollm2_pack: Path) -> None:
    session = over(cluster[1], smollm2_pack, SHORT, 3)
    assert session.wait() == 2
    assert "3 boards are asked for (there are 2 boards)" in session.err.text


def test_a_key_that_is_revoked_takes_no_part_any_more(smollm2_pack: Path, tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.shelve(smollm2_pack)
        session = over(cluster[1], smollm2_pack, 200)
        worker = cluster[2].worker()
        session.out.wait(r"\w+ \w+ \w+")
        assert cluster[1].run("keys", "revoke", "b2").wait() == 0
        worker.wait(10)
        assert session.wait() == 0, session.err.text
        assert re.search(r"^b2 was revoked; .*going on", session.err.text, re.MULTILINE)
        alone = generate(cluster[1], smollm2_pack, 200)
        assert alone.wait() == 0
        assert session.out.text == alone.out.text
        stranger = over(cluster[2], smollm2_pack, SHORT)
        assert stranger.wait() in (1, 2)


def test_a_load_that_fails_frees_the_boards_reserved_for_it(
    cluster: ClusterOf, smollm2_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise MeshError("b2 has no room")

    cluster[1].lend_environ(monkeypatch)
    options = OpenOptions(threads=1, n_ctx=256, cluster=ClusterOptions(boards=2))
    with closing(load_over_boards(Pack.open(smollm2_pack), options)) as model:
        monkeypatch.setattr(WorkerGroup, "start", fail)
        model._close_arrangement()
        with pytest.raises(MeshError, match="no room"):
            model.assemble()
        for board in cluster.boards:  # while the chat sits at its prompt
            board.await_free()
