"""Sessions one after another over boards that keep their slices."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from cluster_boards import ClusterOf, until
from kept_slices import answered, ask, keeping_cluster, kept_on, uses
from shelf_models import packed_tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOf]:
    folder = tmp_path_factory.mktemp("kept")
    with keeping_cluster(folder, packed_tiny(folder)) as made:
        yield made


def test_the_next_session_goes_on_with_the_slices_of_the_last(cluster: ClusterOf) -> None:
    first = answered(cluster[1])
    pid = kept_on(cluster[2])
    again = answered(cluster[1])
    assert again["tokens"] == first["tokens"]
    assert kept_on(cluster[2]) == pid
    shown = cluster[1].run("ps")
    assert shown.wait() == 0
    assert "keeps tiny" in shown.out.text


def test_the_hubs_own_slice_is_kept_by_its_daemon(cluster: ClusterOf) -> None:
    first = answered(cluster[1])
    until(lambda: uses(cluster[1]) == ["kept"], "the hub's daemon keeps its slice")
    assert cluster[1].workers() == []
    again = answered(cluster[1])
    assert again["tokens"] == first["tokens"]
    until(lambda: uses(cluster[1]) == ["kept"], "it is kept again")


def test_a_session_that_needs_another_slice_ends_the_kept_one(cluster: ClusterOf) -> None:
    answered(cluster[1])
    pid = kept_on(cluster[2])
    answered(cluster[1], "--kv-bits", "8")
    assert kept_on(cluster[2]) != pid


def test_a_hub_that_is_killed_leaves_its_slices_loaded(cluster: ClusterOf) -> None:
    calm = answered(cluster[1])
    running = ask(cluster[1], "-n", "100000")
    at_work = ("computing", "waiting for work")
    until(lambda: cluster[2].does() in at_work, "an answer is under way")
    pid = cluster[2].worker().pid
    running.kill()
    assert kept_on(cluster[2]) == pid
    until(lambda: uses(cluster[1]) == [], "the killed hub's memory is free")
    assert answered(cluster[1])["tokens"] == calm["tokens"]
    assert kept_on(cluster[2]) == pid


def test_a_kept_slice_ends_with_its_daemon(cluster: ClusterOf) -> None:
    answered(cluster[1])
    kept_on(cluster[2])
    (worker,) = cluster[2].workers()
    assert cluster[2].daemon is not None
    cluster[2].daemon.signal(signal.SIGKILL)
    worker.wait(5)
