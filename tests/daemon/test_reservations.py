"""The queue of a board's users, without a daemon: the foreground one by one, runs in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from picoedge.daemon.reservations import Action, Grant, Queued, Reservations, StartRun, Stop

A, B, C = b"a", b"b", b"c"
Event = tuple[str, bytes | str]


def happen(reservations: Reservations, event: Event) -> list[Action]:
    name, user = event
    actions: list[Action] = getattr(reservations, name)(user)
    return actions


def after(*events: Event) -> tuple[Reservations, list[Action]]:
    """The reservations after all events, and the actions of the last."""
    reservations, actions = Reservations(), list[Action]()
    for event in events:
        actions = happen(reservations, event)
    return reservations, actions


# -- the foreground ------------------------------------------------------------------------------


def test_a_free_board_is_granted_at_once() -> None:
    state, actions = after(("reserve", A))
    assert actions == [Grant(A)]
    assert (state.holder, state.queue) == (A, [])


def test_others_queue_in_order_and_learn_their_place() -> None:
    assert after(("reserve", A), ("reserve", B))[1] == [Queued(B, 1, A)]
    assert after(("reserve", A), ("reserve", B), ("reserve", C))[1] == [Queued(C, 2, A)]
    assert after(("reserve", A), ("reserve", B), ("reserve", C), ("release", A))[1] == [
        Grant(B),
        Queued(C, 1, B),
    ]
    assert after(("reserve", A), ("reserve", B), ("reserve", C), ("release", B))[1] == [
        Queued(C, 1, A)
    ]


def test_a_board_is_granted_when_the_last_worker_of_the_holder_has_ended() -> None:
    two = (("reserve", A), ("worker_started", A), ("worker_started", A), ("reserve", B))
    assert after(*two, ("release", A))[1] == [Stop(A)]
    assert after(*two, ("release", A), ("worker_ended", A))[1] == []
    assert after(*two, ("release", A), ("worker_ended", A), ("worker_ended", A))[1] == [Grant(B)]


def test_a_holder_whose_worker_ended_keeps_the_board() -> None:
    state, actions = after(
        ("reserve", A), ("worker_started", A), ("reserve", B), ("worker_ended", A)
    )
    assert (state.holder, actions) == (A, [])


# -- runs ----------------------------------------------------------------------------------------


def test_a_run_has_a_board_without_other_holders() -> None:
    assert after(("add_run", "r"))[1] == [StartRun("r")]
    assert after(("reserve", A), ("add_run", "r"))[1] == []
    assert after(("reserve", A), ("add_run", "r"), ("release", A))[1] == [StartRun("r")]


def test_a_run_is_pushed_aside_and_resumed() -> None:
    aside = (("add_run", "r"), ("reserve", A))
    assert after(*aside)[1] == [Stop("r")]
    assert after(*aside, ("worker_ended", "r"))[1] == [Grant(A)]
    assert after(*aside, ("worker_ended", "r"), ("release", A))[1] == [StartRun("r")]


def test_the_foreground_goes_first_however_long_a_run_has_waited() -> None:
    assert after(("reserve", A), ("add_run", "r"), ("reserve", B), ("release", A))[1] == [Grant(B)]


def test_a_run_that_ends_by_itself_is_over() -> None:
    state, actions = after(("add_run", "r"), ("add_run", "s"), ("worker_ended", "r"))
    assert state.runs == ["s"]
    assert actions == [StartRun("s")]


def test_a_run_that_is_called_off_ends_wherever_it_is() -> None:
    assert after(("add_run", "r"), ("end_run", "r"))[1] == [Stop("r")]
    assert after(("add_run", "r"), ("end_run", "r"), ("worker_ended", "r")) == (Reservations(), [])
    assert after(("reserve", A), ("add_run", "r"), ("end_run", "r"), ("release", A)) == (
        Reservations(),
        [],
    )
    assert after(("add_run", "r"), ("reserve", A), ("end_run", "r"), ("worker_ended", "r"))[1] == [
        Grant(A)
    ]


def test_a_run_that_has_ended_is_not_started_again_after_the_foreground() -> None:
    over = (("add_run", "r"), ("end_run", "r"), ("reserve", A), ("worker_ended", "r"))
    assert after(*over)[1] == [Grant(A)]
    assert after(*over, ("release", A)) == (Reservations(), [])


# -- whatever happens ----------------------------------------------------------------------------


class Board:
    """A daemon's shell in miniature: it does what it is told, and lets processes end later."""

    def __init__(self) -> None:
        self.state = Reservations()
        self.known: set[bytes] = set()  # connections that wait for the board, or have it
        self.alive: list[bytes | str] = []  # users of processes that have not been stopped
        self.dying: list[bytes | str] = []
        self.over: set[str] = set()  # runs whose worker has ended by itself

    def happen(self, name: str, user: bytes | str) -> None:
        for action in happen(self.state, (name, user)):
            self.do(action)
        self.check()

    def do(self, action: Action) -> None:
        match action:
            case Grant(connection):
                assert self.alive == self.dying == []
                assert self.state.holder == connection
            case StartRun(run):
                assert run not in self.over
                assert self.alive == self.dying == []
                self.alive.append(run)
            case Stop(user):
                self.dying += [each for each in self.alive if each == user]
                self.alive = [each for each in self.alive if each != user]
            case Queued(connection, place, holder):
                assert self.state.queue[place - 1] == connection
                assert self.state.holder == holder

    def check(self) -> None:
        state = self.state
        users = [user for user in (state.holder, state.active) if user is not None]
        assert len(users) <= 1
        assert set(self.alive) <= set(users)
        assert sorted(map(str, state.workers)) == sorted(map(str, self.alive + self.dying))
        assert {*state.queue, *users} - set(state.runs) == self.known
        if state.queue:
            assert state.active is None
        if state.queue or state.runs:
            assert users or state.workers  # it never stands idle

    def step(self, kind: int, number: int) -> None:
        """One thing that can happen now; nothing where it cannot."""
        connection, run = bytes([number]), f"run {number}"
        match kind:
            case 0 if connection not in self.known:
                self.known.add(connection)
                self.happen("reserve", connection)
            case 1 if connection in self.known:
                self.known.remove(connection)
                self.happen("release", connection)
            case 2:
                self.over.discard(run)
                self.happen("add_run", run)
            case 3:
                self.happen("end_run", run)
            case 4 if self.state.holder is not None:
                self.alive.append(self.state.holder)
                self.happen("worker_started", self.state.holder)
            case 5 if self.dying:
                self.happen("worker_ended", self.dying.pop(number % len(self.dying)))
            case 6 if self.alive:  # ends by itself; that its memory is free is known later
                self.ended(self.alive, number)
            case 7 if self.dying:  # had ended by itself when it was stopped
                self.ended(self.dying, number)
            case 8 if self.state.active in self.alive and self.state.active is not None:
                self.alive.remove(self.state.active)  # was not started, for want of memory
                self.over.add(self.state.active)
                self.happen("worker_ended", self.state.active)

    def ended(self, processes: list[bytes | str], number: int) -> None:
        """A process is seen to have ended: a run is over, a connection keeps the board."""
        user = processes.pop(number % len(processes))
        self.dying.append(user)
        if isinstance(user, str):
            self.over.add(user)
            self.happen("end_run", user)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), max_size=60))
def test_jobs_never_share_a_board_and_it_never_stands_idle(
    steps: list[tuple[int, int]],
) -> None:
    board = Board()
    for kind, number in steps:
        board.step(kind, number)
    for connection in list(board.known):  # all leave, every process ends
        board.known.remove(connection)
        board.happen("release", connection)
    for run in list(board.state.runs):
        board.happen("end_run", run)
    while board.dying:
        board.happen("worker_ended", board.dying.pop())
    assert board.state == Reservations()
