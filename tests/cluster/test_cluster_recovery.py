"""A session that lives on: after any error, while its daemon starts, at full strength again."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from cluster_boards import ClusterOf, cluster_of, until
from greedy_texts import PROMPT, Text, begun

from picoedge.cluster import arrangement, resilient_model, worker_group
from picoedge.cluster.arrangement import Arranger
from picoedge.cluster.daemon_reports import DaemonReports
from picoedge.cluster.load import load_over_boards
from picoedge.cluster.recovery import HubPaused
from picoedge.cluster.resilient_model import ClusterModel
from picoedge.cluster.worker_group import WorkerGroup
from picoedge.engine.options import OpenOptions
from picoedge.errors import MemoryBudgetError, MeshError, StorageError
from picoedge.host.sysfs import PROC, file_fields
from picoedge.jobs import stragglers
from picoedge.jobs.boards import BoardDirectory, refusals
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.identity.identity import load_identity
from picoedge.mesh.transport.client import Client
from picoedge.planner.cluster_plan import ClusterOptions
from picoedge.planner.topology import LinkFacts, Topology
from picoedge.store.pack.reader import Pack

OPTIONS = OpenOptions(threads=1, n_ctx=256, cluster=ClusterOptions(boards=2, split=(1.0, 1.0)))
GROWTH_MB = 20  # a slice has 50; some of the C library's heap comes and goes


@pytest.fixture(scope="module")
def two_boards(smollm2_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOf]:
    with cluster_of(tmp_path_factory.mktemp("recovery"), 2) as made:
        made.shelve(smollm2_pack)
        yield made


@pytest.fixture
def cluster(two_boards: ClusterOf, monkeypatch: pytest.MonkeyPatch) -> ClusterOf:
    two_boards[1].lend_environ(monkeypatch)
    return two_boards


@pytest.fixture
def model(cluster: ClusterOf, smollm2_pack: Path) -> Iterator[ClusterModel]:
    with closing(load_over_boards(Pack.open(smollm2_pack), OPTIONS)) as made:
        yield made


def anonymous_mb() -> float:
    """Memory of this process, without the pages of libraries, which come and go."""
    gc.collect()
    return int(file_fields(PROC / "self/status")["RssAnon"].split()[0]) / 1024


STEPS: list[tuple[Any, str]] = [
    (DaemonReports, "explain"),
    (BoardDirectory, "refresh"),
    (Arranger, "plan"),
    (arrangement, "reserve_boards"),
    (WorkerGroup, "start"),
    (WorkerGroup, "_start_workers"),
    (worker_group, "load_model"),
    (WorkerGroup, "_await_ready"),
    (BoardDirectory, "close"),
]
ERRORS: list[Callable[[], BaseException]] = [
    KeyboardInterrupt,
    lambda: MeshError("a daemon says no"),
    lambda: StorageError("a dead disk"),
    lambda: MemoryBudgetError("no room"),
]


@pytest.mark.parametrize("first", range(0, len(STEPS), 3))
def test_after_any_error_in_a_recovery_the_next_question_is_answered(
    cluster: ClusterOf, model: ClusterModel, first: int
) -> None:
    text, expected = begun(model, 8)
    for number, (owner, name) in enumerate(STEPS[first : first + 3], first):
        error = ERRORS[number % len(ERRORS)]()

        def fail(*args: object, error: BaseException = error, **named: object) -> None:
            raise error

        model._recovery.on(HubPaused(), 0.0)  # each loss is the first
        with pytest.MonkeyPatch.context() as patch:
            cluster[2].worker().send_signal(signal.SIGKILL)
            patch.setattr(owner, name, fail)
            with pytest.raises(type(error)):
                text.ask()
        text.ask()
        assert model.boards == 2
    while len(text.tokens) < len(expected):
        text.ask()
    assert text.tokens == expected


def test_an_interrupt_in_a_pass_leaves_no_group_out_of_step(
    model: ClusterModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, expected = begun(model, 3)
    sums = 0

    def interrupted(*args: object) -> Any:
        nonlocal sums
        sums += 1
        if sums == 5:
            raise KeyboardInterrupt
        return begin(*args)

    begin = model.slice._reduce
    model.slice._reduce = interrupted
    with pytest.raises(KeyboardInterrupt):
        text.ask()
    while len(text.tokens) < len(expected):
        text.ask()
    assert text.tokens == expected
    assert model.boards == 2


def test_the_hubs_own_daemon_is_waited_for(
    cluster: ClusterOf, model: ClusterModel, capfd: pytest.CaptureFixture[str]
) -> None:
    text, expected = begun(model, 12)
    assert cluster[1].daemon is not None
    cluster[1].daemon.kill()
    starting = threading.Timer(1.0, lambda: cluster[1].start("--memory", "2G"))
    starting.start()
    before = model._arrangement
    while model._arrangement is before:  # it is noticed within a tenth of a second
        text.ask()
    starting.join()
    assert model.boards == 2
    text.ask()
    assert text.tokens == expected[: len(text.tokens)]
    told = capfd.readouterr().err
    assert told.count("waiting up to 30 s for this board's daemon (picoedge run)") == 1


def test_a_daemon_that_stays_away_is_a_clear_error_of_this_question(
    cluster: ClusterOf, model: ClusterModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("picoedge.cluster.recovery.RETURN_S", 1.0)
    model.forward(PROMPT, 0)
    cluster[1].stop()
    with pytest.raises(MeshError, match="its daemon does not run"):
        Text(model).ask()
    cluster[1].start("--memory", "2G")
    cluster.wait()
    Text(model).ask()
    assert model.boards == 2


def test_a_board_that_is_back_takes_part_in_the_next_answer(
    cluster: ClusterOf, model: ClusterModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resilient_model, "LOOK_EVERY_S", 0.0)
    text, expected = begun(model, 4)
    cluster[2].signal_all(signal.SIGKILL)
    text.ask()
    assert model.boards == 1
    cluster[2].start("--memory", "2G")
    cluster.wait()
    model._recovery.on(HubPaused(), 0.0)  # nothing is held against anybody
    text.ask()
    assert model.boards == 2
    at = model._arrangement
    text.ask()
    assert model._arrangement is at  # and not again and again
    assert text.tokens == expected


def test_boards_that_are_lost_and_back_while_nothing_is_asked(
    cluster: ClusterOf, model: ClusterModel, capfd: pytest.CaptureFixture[str]
) -> None:
    cleared: list[str] = []

    def attend() -> int:
        model.attend(lambda: cleared.append(""))
        return model.boards if model._arrangement is not None else 0

    text, expected = begun(model, 2)
    capfd.readouterr()
    cluster[2].signal_all(signal.SIGKILL)
    until(lambda: attend() == 1, "it goes on without b2")
    assert "b2" in capfd.readouterr().err
    assert cleared
    cluster[2].start("--memory", "2G")
    cluster.wait()
    until(lambda: attend() == 2, "b2 is used again")
    assert model._valid == len(model._tokens) > 0
    at = model._arrangement
    capfd.readouterr()
    attend()
    text.ask()
    assert model._arrangement is at
    assert capfd.readouterr().err == ""  # it was ready when it was asked
    assert text.tokens == expected


def test_failures_while_nothing_is_asked_are_left_to_the_next_question(
    cluster: ClusterOf, model: ClusterModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **how: object) -> None:
        tried.append(args)
        raise MeshError("no board answers")

    tried: list[object] = []
    model._close_arrangement()
    with monkeypatch.context() as changed:
        changed.setattr(BoardDirectory, "refresh", fails)
        for _ in range(3):
            model.attend(lambda: None)
    assert len(tried) == 1  # and the next time after a rest
    model.forward(PROMPT, 0)
    assert model.boards == 2


def test_a_board_that_would_not_be_chosen_is_no_reason_to_load_again(
    cluster: ClusterOf, smollm2_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resilient_model, "LOOK_EVERY_S", 0.0)
    cluster[2].stop()
    until(lambda: cluster[1].seen()["b2"]["condition"] != "alive", "b1 knows")
    options = OpenOptions(threads=1, n_ctx=256, cluster=ClusterOptions(boards=1))
    with closing(load_over_boards(Pack.open(smollm2_pack), options)) as model:
        cluster[2].start("--memory", "2G")
        cluster.wait()
        at = model._arrangement
        model.forward(PROMPT, 0)
        assert model._arrangement is at
        looks: list[object] = []
        monkeypatch.setattr(BoardDirectory, "_try", lambda *args: looks.append(args))
        model.forward(PROMPT, 0)
        assert not looks


def test_a_board_that_was_at_a_bad_moment_takes_part_later(
    cluster: ClusterOf, smollm2_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latency_s = 1.0
    look = BoardDirectory.cluster

    def measured(directory: BoardDirectory) -> Topology:
        boards = [replace(one, compute_bytes_per_s=1e8) for one in look(directory).boards]
        return Topology(tuple(boards), link=LinkFacts(latency_s, 1e8))

    monkeypatch.setattr(resilient_model, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(stragglers, "LOOK_S", 0.0)
    monkeypatch.setattr(BoardDirectory, "cluster", measured)
    options = OpenOptions(threads=1, n_ctx=256, cluster=ClusterOptions())
    with closing(load_over_boards(Pack.open(smollm2_pack), options)) as model:
        model.forward(PROMPT, 0)
        assert model.boards == 1
        latency_s = 1e-5
        model.forward([6, 7], len(PROMPT))
        assert model.boards == 2


def test_a_board_reserved_by_an_earlier_connection_is_taken_back(
    cluster: ClusterOf, model: ClusterModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resilient_model, "LOOK_EVERY_S", 0.0)
    text, expected = begun(model, 4)
    keys, context = load_identity(cluster[1].keys).keys, zmq.Context()
    to = parse_address(cluster[2].address), load_identity(cluster[2].keys).keys.public
    try:
        with Client(context, keys, *to, "b2") as earlier:  # whose end its daemon has not seen yet
            earlier.ask("job-reserve", {"session": model._directory.session})
            text.ask()
            assert model.boards == 1
            model._recovery.on(HubPaused(), 0.0)  # nothing is held against anybody
            until(lambda: cluster[1].seen()["b2"]["does"] == "taken", "b1 knows")
            while len(text.tokens) < len(expected):
                text.ask()
            assert model.boards == 2
    finally:
        context.destroy(linger=0)
    assert text.tokens == expected


def test_a_board_that_refuses_is_done_without_for_a_while(
    cluster: ClusterOf,
    model: ClusterModel,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refused(group: WorkerGroup) -> None:
        with refusals(group._handles[1]):
            group._handles[1].client.ask("job-start", {"job": "unheard of"})

    monkeypatch.setattr(resilient_model, "LOOK_EVERY_S", 0.0)
    model.forward(PROMPT, 0)
    cluster[2].worker().send_signal(signal.SIGKILL)
    with monkeypatch.context() as patch:
        patch.setattr(WorkerGroup, "_start_workers", refused)
        model.forward([6, 7], len(PROMPT))
        assert model.boards == 1
    assert "; going on without it\n" in capfd.readouterr().err
    model._recovery.on(HubPaused(), 0.0)  # nothing is held against anybody
    model.forward([6, 7], len(PROMPT))
    assert model.boards == 2


def test_memory_is_free_before_the_next_slice_is_loaded(
    cluster: ClusterOf, model: ClusterModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading: list[float] = []
    load_model = worker_group.load_model

    def measured(*args: Any, **named: Any) -> Any:
        loading.append(anonymous_mb())
        return load_model(*args, **named)

    monkeypatch.setattr(worker_group, "load_model", measured)
    model.forward(PROMPT, 0)
    loaded = [anonymous_mb()]
    for _ in range(5):
        cluster[2].worker().send_signal(signal.SIGKILL)
        model.forward([6, 7], len(PROMPT))
        loaded.append(anonymous_mb())
        model._recovery.on(HubPaused(), 0.0)  # each loss is the first
    assert max(loading) < loaded[0] - 30, (loading, loaded)
    assert loading[-1] - loading[1] < GROWTH_MB, loading  # the first leaves a constant
    assert loaded[-1] - loaded[1] < GROWTH_MB, loaded


def test_an_answer_goes_on_on_a_clean_line_whatever_report_of_loading_was_the_last(
    cluster: ClusterOf, smollm2_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    options = OpenOptions(threads=1, n_ctx=256, cluster=ClusterOptions(boards=2, split=(1.0, 1.0)))

    def progress(what: str, done: int, total: int) -> None:
        drawn.append(what if done < total else "")

    with closing(load_over_boards(Pack.open(smollm2_pack), options, progress)) as model:
        model.forward(PROMPT, 0)
        cluster[2].worker().send_signal(signal.SIGKILL)
        model.forward([6, 7], len(PROMPT))
        group = model._arrangement and model._arrangement.group
        assert group is not None
        assert drawn[-1] == ""
        loading = {"stage": "loading", "done": 1, "total": 2}
        group.daemons._add_report(group._handles[1], loading)  # comes late
        assert drawn[-1] == ""


def test_a_board_that_another_session_has_taken_meanwhile_is_not_queued_for(
    cluster: ClusterOf, model: ClusterModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resilient_model, "LOOK_EVERY_S", 0.0)
    model.forward(PROMPT, 0)
    with cluster[2].calling() as other:
        asked = threading.Thread(target=lambda: other.ask("job-reserve", timeout_s=30.0))
        asked.start()
        until(lambda: cluster[2].seen()["b2"]["queue_length"] == 1, "it waits")
        model._close_arrangement()  # as after a loss
        asked.join()
        until(lambda: cluster[1].seen()["b2"].get("holder") == "b2", "b1 knows its user")
        model.forward([6, 7], len(PROMPT))
        assert model.boards == 1
    cluster[2].await_free()
    until(lambda: cluster[1].seen()["b2"]["does"] == "free", "b1 knows that it is free")
    model.forward([6, 7], len(PROMPT))
    assert model.boards == 2
