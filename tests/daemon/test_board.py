"""A daemon's board service over real sockets, with jobs whose workers compute nothing."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq
from daemon_boards import SUPPORT, WITHIN_S, Board, pushed

from picoedge.daemon import board_probe, worker_process
from picoedge.errors import AccessError, BoardLostError, MeshError
from picoedge.jobs.status import read_report
from picoedge.kernels import native
from picoedge.mesh.identity.identity import load_signing_key
from picoedge.mesh.identity.roster import RosterFile
from picoedge.mesh.node.liveness import Condition, Liveness, Timing


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT), prepend=":")
    with ExitStack() as stack:
        yield Board(tmp_path, stack)


def test_a_job_of_the_foreground_from_its_reservation_to_its_end(board: Board) -> None:
    hub = board.connect(board.hub)
    assert hub.ask("job-reserve", {"job": "tiny"})["memory_bytes"] > 0
    assert board.state()["does"] == "taken"
    hub.ask("job-start", {"job": "tiny", "spec": board.spec("one")})
    assert pushed(hub, "job-listens") == {"group": "one", "port": 4711}
    assert board.wait(does="computing")["model"] == "tiny one"
    assert pushed(hub, "job-report")["group"] == "one"
    (board.folder / "one").touch()
    assert pushed(hub, "job-ended") == {
        "group": "one", "message": "the session is over", "hint": "",
    }  # fmt: skip
    hub.ask("job-release")
    board.wait(does="free")


@pytest.mark.parametrize("job", ["unheard of", None, 7])
def test_an_unknown_kind_of_job_is_refused(board: Board, job: Any) -> None:
    hub = board.connect(board.hub)
    with pytest.raises(BoardLostError, match="its connection ended"):
        hub.ask("job-reserve", {"job": job})


def test_a_background_job_needs_no_reservation_and_outlives_its_connection(board: Board) -> None:
    hub = board.connect(board.hub)
    hub.ask("job-start", {"job": "tiny training", "spec": board.spec("run")})
    board.wait(does="computing", model="tiny run")
    hub.close()
    again = board.connect(board.hub)
    assert board.wait(does="computing")["holder"] == "hub"
    again.ask("job-release", {"run": "run"})
    board.wait(does="free")


def test_a_background_job_stands_aside_while_the_board_is_reserved(board: Board) -> None:
    hub, guest = board.connect(board.hub), board.connect(board.guest)
    hub.ask("job-start", {"job": "tiny training", "spec": board.spec("run")})
    board.wait(does="computing", model="tiny run")
    guest.ask("job-reserve", {"job": "tiny"})
    assert board.wait(does="taken")["holder"] == "guest"
    spec = board.spec("chat", board.guest)
    guest.ask("job-start", {"job": "tiny", "spec": spec})
    board.wait(does="computing", model="tiny chat")
    guest.close()
    board.wait(does="computing", model="tiny run")
    (board.folder / "run").touch()
    assert pushed(hub, "job-ended")["message"] == "the session is over"
    board.wait(does="free")


def test_a_run_is_released_by_its_hub_alone(board: Board) -> None:
    hub, guest = board.connect(board.hub), board.connect(board.guest)
    hub.ask("job-start", {"job": "tiny training", "spec": board.spec("run")})
    with pytest.raises(AccessError, match="no such job"):
        guest.ask("job-release", {"run": "run"})
    with pytest.raises(MeshError, match="is on this board already"):
        hub.ask("job-start", {"job": "tiny training", "spec": board.spec("run")})
    guest.ask("job-release")  # of nothing
    board.wait(does="computing", model="tiny run")


def test_a_run_is_no_way_round_the_check_of_a_group(board: Board) -> None:
    guest = board.connect(board.guest)
    with pytest.raises(BoardLostError, match="its connection ended"):
        guest.ask("job-start", {"job": "tiny training", "spec": board.spec("run", board.hub)})


@pytest.mark.usefixtures("libraries_anew")
def test_a_board_that_computes_with_numpy_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(board_probe, "measure_board", lambda *its: {"numpy": True})
    monkeypatch.setattr("sys.argv", ["board_probe", str(tmp_path), "0"])
    monkeypatch.setattr(native, "_ABI", native._ABI + 1)
    assert board_probe.main() == 0
    ran = capsys.readouterr()
    assert json.loads(ran.out) == {"numpy": True}
    assert ran.err.startswith("picoedge: running on NumPy: ")
    assert "was built from other sources" in ran.err
    assert ran.err.count("\n") == 1


def test_a_run_that_has_ended_when_the_board_is_reserved_is_over(board: Board) -> None:
    hub, guest = board.connect(board.hub), board.connect(board.guest)
    hub.ask("job-start", {"job": "tiny training", "spec": board.spec("run")})
    board.wait(does="computing", model="tiny run")
    guest.ask("job-release")  # of nothing

    def both() -> None:
        """The worker's end and the reservation come before the daemon sees either."""
        holder, rpc = board.service._holder, board.running.node.rpc
        assert holder is not None
        assert holder.worker is not None
        (board.folder / "run").touch()
        guest.push("job-reserve", {"job": "tiny"})
        zmq.zmq_poll([(holder.worker.pidfd, zmq.POLLIN)], WITHIN_S * 1000)
        zmq.zmq_poll([(rpc.server.socket, zmq.POLLIN)], WITHIN_S * 1000)

    board.running.do(both)
    assert board.wait(does="taken")["holder"] == "guest"
    guest.close()
    board.wait(does="free")
    hub.ask("job-release")
    kinds = [kind for kind, _ in hub.notifications()]
    assert kinds.count("job-listens") == kinds.count("job-ended") == 1


@pytest.mark.parametrize("is_sender", [True, False])
def test_a_run_ends_with_the_revocation_of_its_hub_or_a_member(
    board: Board, is_sender: bool
) -> None:
    sender = board.guest if is_sender else board.hub
    spec = board.spec("run", sender)
    if not is_sender:
        spec["members"].append([board.guest.keys.public, "guest"])
    client = board.connect(sender)
    client.ask("job-start", {"job": "tiny training", "spec": spec})
    board.wait(does="computing", model="tiny run")
    signing = load_signing_key(board.hub.folder)
    RosterFile(board.running.identity.folder).update(
        lambda roster: roster.with_revoke(signing, board.guest.keys.public)
    )
    board.wait(does="free")
    if not is_sender:
        assert "the key of guest was revoked" in pushed(client, "job-ended")["message"]


def test_a_board_ends_any_run_on_it_and_no_key_has_all_of_its_runs(board: Board) -> None:
    guest, own = board.connect(board.guest), board.connect(board.running.identity)
    for name in ("run", "next"):
        spec = board.spec(name, board.guest)
        guest.ask("job-start", {"job": "tiny training", "spec": spec})
    spec = board.spec("third", board.guest)
    with pytest.raises(MeshError, match="too many runs"):
        guest.ask("job-start", {"job": "tiny training", "spec": spec})
    own.ask("job-release", {"run": "run"})
    board.wait(does="computing", model="tiny next")


def test_a_worker_that_cannot_be_started_is_an_error_with_a_remedy(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*its: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("picoedge.daemon.workers.WorkerProcess", fail)
    hub = board.connect(board.hub)
    hub.ask("job-start", {"job": "tiny training", "spec": board.spec("run")})
    assert "Cannot allocate memory" in pushed(hub, "job-ended")["message"]
    hub.ask("job-reserve", {"job": "tiny"})
    with pytest.raises(MeshError, match=r"did not start: .*Cannot allocate memory \(has that"):
        hub.ask("job-start", {"job": "tiny", "spec": board.spec("one")})
    board.wait(does="taken")


def test_the_relay_of_a_worker_is_forgotten_with_it(board: Board) -> None:
    hub = board.connect(board.hub)
    hub.ask("job-reserve", {"job": "tiny"})
    hub.ask("job-start", {"job": "tiny", "spec": board.spec("one")})
    assert pushed(hub, "job-listens")
    holder = board.service._holder
    assert holder is not None
    holder.relay = "the socket of this worker"
    (board.folder / "one").touch()
    assert pushed(hub, "job-ended")
    board.running.do(lambda: None)
    assert holder.relay == ""


# -- sessions of one key -------------------------------------------------------------------------

SESSION = {"job": "tiny", "session": "0123456789abcdef"}
OTHERS = [{"job": "tiny", "session": "fedcba9876543210"}, {"job": "tiny"}]


def test_a_reservation_of_an_earlier_connection_is_freed_for_its_session(board: Board) -> None:
    earlier, later = board.connect(board.hub), board.connect(board.hub)
    earlier.ask("job-reserve", SESSION)
    earlier.ask("job-start", {"job": "tiny", "spec": board.spec("one")})
    state = board.wait(does="computing", holder_session=SESSION["session"])
    assert state["holder_key"] == board.hub.keys.public
    assert later.ask("job-reserve", SESSION)["memory_bytes"] > 0
    assert board.wait(does="taken", queue_length=0)
    with pytest.raises(BoardLostError, match="its connection ended"):
        earlier.ask("board-facts")
    assert board.state()["does"] == "taken"


def test_a_session_has_one_place_in_the_queue(board: Board) -> None:
    guest, earlier, later = map(board.connect, (board.guest, board.hub, board.hub))
    guest.ask("job-reserve", OTHERS[0])
    for client in (earlier, later):
        with pytest.raises(BoardLostError, match="is silent"):
            client.ask("job-reserve", SESSION, timeout_s=0.2)
        assert board.wait(queue_length=1)


@pytest.mark.parametrize(("first", "second"), [(SESSION, OTHERS[0]), (SESSION, OTHERS[1]), OTHERS])
def test_two_sessions_of_one_key_take_turns(
    board: Board, first: dict[str, Any], second: dict[str, Any]
) -> None:
    one, other = board.connect(board.hub), board.connect(board.hub)
    one.ask("job-reserve", first)
    with pytest.raises(BoardLostError, match="is silent"):
        other.ask("job-reserve", second, timeout_s=0.2)
    one.ask("job-release")
    assert board.wait(does="taken", queue_length=0).get("holder_session") == second.get("session")


def test_no_key_frees_what_another_has(board: Board) -> None:
    hub, guest = board.connect(board.hub), board.connect(board.guest)
    hub.ask("job-reserve", SESSION)
    with pytest.raises(BoardLostError, match="is silent"):
        guest.ask("job-reserve", SESSION, timeout_s=0.2)
    assert board.wait(queue_length=1)["holder"] == "hub"


@pytest.mark.parametrize("session", ["", "short", "0123456789ABCDEF", 7, None, ["0" * 16]])
def test_a_malformed_session_number_is_refused(board: Board, session: Any) -> None:
    hub = board.connect(board.hub)
    with pytest.raises(BoardLostError, match="its connection ended"):
        hub.ask("job-reserve", {"job": "tiny", "session": session})


# -- its heartbeats, as the other boards read them -----------------------------------------------


def condition(board: Board) -> Condition:
    """What the others take the board for, from its own state."""
    liveness = Liveness(lambda: 0.0, Timing())
    liveness.heard("board", 1, 1, board.state())
    return liveness.members["board"].condition


def test_a_board_s_own_report_is_kept_whole_by_the_others(board: Board) -> None:
    def is_kept() -> bool:
        state = {name: value for name, value in board.state().items() if value is not None}
        return read_report(state) == state

    hub = board.connect(board.hub)
    assert is_kept()
    hub.ask("job-reserve", SESSION)
    assert is_kept()
    hub.ask("job-start", {"job": "tiny", "spec": board.spec("one")})
    board.wait(does="computing", state="running")
    assert is_kept()


def test_a_board_with_a_queue_is_not_slow(board: Board) -> None:
    hub, guest = board.connect(board.hub), board.connect(board.guest)
    hub.ask("job-reserve", {"job": "tiny"})
    with pytest.raises(BoardLostError, match="is silent"):
        guest.ask("job-reserve", {"job": "tiny"}, timeout_s=0.2)
    assert board.wait(queue_length=1)["does"] == "taken"
    assert condition(board) is Condition.ALIVE


def test_a_board_whose_worker_waits_for_its_disk_is_slow(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = board.connect(board.hub)
    hub.ask("job-reserve", {"job": "tiny"})
    hub.ask("job-start", {"job": "tiny", "spec": board.spec("one")})
    board.wait(does="computing", state="running")
    assert condition(board) is Condition.ALIVE
    monkeypatch.setattr(worker_process, "state_of", lambda pid: "disk")
    board.wait(state="disk", stalled_on="")  # a read of a moment is no stall
    assert condition(board) is Condition.ALIVE
    board.wait(stalled_on="disk")
    assert condition(board) is Condition.SLOW
    monkeypatch.undo()
    board.wait(stalled_on="")
    assert condition(board) is Condition.ALIVE
