"""What daemons answer and report of themselves, and messages whose order matters."""

from __future__ import annotations

import atexit
import json
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, cast

from fuzz.mutate import any_value, mutate_bytes, mutate_value, written
from fuzz.target import Run, Target
from fuzz.targets.board_messages import (
    CHUNK,
    FACTS,
    HELLO,
    KEPT_SLICE,
    KEYS,
    MESH,
    NOT_REACHED,
    REACHED,
    STATE,
)
from fuzz.targets.mesh import message, new_node
from picoedge.daemon.relay import Relays
from picoedge.errors import PicoedgeError
from picoedge.fields import Fields
from picoedge.jobs.boards import _facts_in
from picoedge.jobs.cluster_check import CheckedBoard, _checked, _member
from picoedge.jobs.relay import Relay, new_endpoint
from picoedge.jobs.spec import VERSION_1, read_kept
from picoedge.jobs.status import PAGES, read_mesh, read_report
from picoedge.mesh.transport.client import Client, ask_pages
from picoedge.mesh.transport.credit import PushCredit
from picoedge.mesh.transport.limits import DEFAULT_LIMITS
from picoedge.mesh.transport.messages import Dialect, control
from picoedge.mesh.transport.server import Sender

MOST_REPORT = 8 << 10  # bytes of JSON: a daemon keeps one of each board, and tells all of them
MOST_MESSAGES = 40  # of one input


def _report(body: dict[str, Any]) -> None:
    """What a daemon keeps of a heartbeat is small, and what it would keep of that is the same."""
    kept = read_report(body)
    assert len(json.dumps(kept)) <= MOST_REPORT
    again = read_report(kept)
    assert again == kept, (kept, again)
    control("mesh-state", {"boards": [{"report": kept}]})


class _Daemon:
    """Stands for a client of a daemon: every request has the same answer."""

    name = "b1"

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self._answer = answer

    def ask(self, kind: str, *rest: object, **named: object) -> Mapping[str, Any]:
        return {k: list(v) if isinstance(v, list) else v for k, v in self._answer.items()}


def _pages(body: dict[str, Any]) -> None:
    read_mesh(ask_pages(cast(Client, _Daemon(body)), *PAGES, 1.0))


def _reached(body: dict[str, Any]) -> None:
    one = CheckedBoard(KEYS[0].public, "b0", True, ())
    other = CheckedBoard(KEYS[1].public, "b1", len(body) % 2 == 0, ())
    _checked(cast(Client, _Daemon(body)), one, other, is_own=True)


# -- messages in an order ------------------------------------------------------------------------


def sequence(
    name: str,
    open_: Callable[[Path], Run],
    messages: Sequence[tuple[str, Any]],
    modules: tuple[str, ...],
) -> Target:
    """A target whose input is a list of [kind, body], handed over one after the other.

    `messages`, in this order, are sound; most of an input keeps their order.
    """

    def mutate(rng: Random, given: Sequence[bytes]) -> bytes:
        chosen = list(messages)
        for _ in range(rng.choice((1, 2, 4, 12, MOST_MESSAGES))):
            at, to = rng.randrange(len(chosen)), rng.randrange(len(chosen))
            what = rng.randrange(4)
            if what == 0:
                chosen.insert(at, rng.choice(messages))
            elif what == 1 and len(chosen) > 1:
                del chosen[at]
            elif what == 2:
                chosen[at], chosen[to] = chosen[to], chosen[at]
            else:
                chosen[at:at] = chosen[to : to + rng.choice((1, 2, 5))]
        for at in range(len(chosen)):
            if rng.randrange(6) == 0:
                kind, body = chosen[at]
                chosen[at] = (kind, mutate_value(rng, body, ("taken", "data", "of")))
        if rng.randrange(10) == 0:
            return written(rng, any_value(rng))
        return written(rng, chosen)

    sample = json.dumps(messages).encode()
    return Target(name, open_, lambda: [sample], mutate, modules, weight=2)


def _messages_of(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    """The messages, as a connection has checked each one before it is handed over."""
    dialect = Dialect()
    try:
        listed = json.loads(data)
    except (ValueError, RecursionError):
        return []
    found = []
    for each in listed[:MOST_MESSAGES] if isinstance(listed, list) else []:
        if isinstance(each, list) and len(each) == 2:
            value = {"kind": each[0], "body": each[1]}
            raw = json.dumps(value, ensure_ascii=True).encode()
            found.append(dialect.read([control("x", {})[0], raw]))
    return found


class _Worker:
    """Listens in a worker's place, and is one of three: there, gone, or of another's job."""

    def __init__(self) -> None:
        self.endpoint = self._own = new_endpoint()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"\0{self._own}")
        self._listener.listen(8)
        self._listener.setblocking(False)
        self._accepted: list[socket.socket] = []
        atexit.register(self._listener.close)

    def does(self, kind: str) -> None:
        """What the message `kind` makes it do."""
        with suppress(BlockingIOError):
            while kind != "waits":
                self._accepted.append(self._listener.accept()[0])
        last = self._accepted[-1] if self._accepted else None
        if kind in ("comes", "goes", "is-none"):
            self.endpoint = {"comes": self._own, "goes": "nowhere", "is-none": ""}[kind]
        elif last is not None and kind == "says":
            with suppress(OSError):  # the daemon has closed its end
                last.send(b"x" * 100)
        elif last is not None and kind == "ends":
            self._accepted.pop().close()

    def close(self) -> None:
        """As before the first input."""
        self.does("comes")
        while self._accepted:
            self._accepted.pop().close()


def _relay_daemon(folder: Path) -> Run:
    """The daemon's side of a relay, for a board with two connections, and its worker.

    As with a network, a message that is refused does not keep the next from being read.
    """
    node, worker = new_node(folder), _Worker()
    relays = Relays(node.rpc, lambda key: worker.endpoint)
    handlers, loop = node.rpc._handlers, node.rpc.loop
    senders = [Sender(KEYS[1].public, route, "10.0.0.3") for route in (b"\0aaaa", b"\0bbbb")]

    def run(data: bytes) -> None:
        refused, sender = list[PicoedgeError](), senders[0]
        try:
            for kind, body in _messages_of(data):
                if kind in ("relay-open", "relay-send"):
                    try:
                        handlers[kind](sender, body)
                    except PicoedgeError as error:
                        refused.append(error)
                elif kind == "other":
                    sender = senders[sender is senders[0]]
                worker.does(kind)
                if kind != "relay-send":  # several may come in one turn
                    loop.soon(lambda: None)
                    loop.turn()
        finally:
            relays.close()
            worker.close()
        if refused:
            raise refused[0]

    return run


def _relay_hub(folder: Path) -> Run:
    """The hub's side of a relay: its socket is written as far as it takes bytes."""

    def run(data: bytes) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        relay = Relay.__new__(Relay)
        relay._limits, relay._chunks = DEFAULT_LIMITS, deque()
        relay._taken = relay._acknowledged = 0
        relay._is_sending = relay._has_ended = False
        with ours, theirs:
            for kind, body in _messages_of(data):
                relay._on_push(kind, body)
                assert len(relay._chunks) <= DEFAULT_LIMITS.relay_window
                if kind == "turn":
                    relay._write(ours)
                    relay._acknowledged = relay._taken

    return run


def _credit(folder: Path) -> Run:
    """Notifications and their acknowledgements, in any order: one of a kind is under way."""

    def run(data: bytes) -> None:
        for acknowledges in (True, False):
            credit, sent, now_s = PushCredit(acknowledges, 0.0), 0, 0.0
            for kind, body in _messages_of(data):
                now_s += 0.1
                if kind == "acknowledge":
                    about = Fields(body).text("of", 64)
                    credit.acknowledged(about)
                elif kind == "heard":
                    credit.heard(now_s)
                else:
                    sent += credit.offer(kind, body, now_s) is not None
            assert len(credit._newest) <= len(credit._unread) <= MOST_MESSAGES

    return run


# -- control messages as frames ------------------------------------------------------------------


def _frames(folder: Path) -> Run:
    """Frames as ZeroMQ delivers them, each after its length in two bytes; both versions."""

    def run(data: bytes) -> None:
        frames, at = [], 0
        while at + 2 <= len(data):
            end = at + 2 + int.from_bytes(data[at : at + 2], "little")
            frames.append(memoryview(data)[at + 2 : end])
            at = end
        dialect = Dialect(VERSION_1, "board b1", acknowledges=True)
        kind, body = dialect.read(frames)
        dialect.reply_body(kind, body)
        dialect.write(kind, body, kind)

    return run


def _framed(frames: Sequence[bytes]) -> bytes:
    cut = [frame[:65535] for frame in frames]
    return b"".join(len(frame).to_bytes(2, "little") + frame for frame in cut)


def _frame_samples() -> list[bytes]:
    first = {**HELLO, "speaks": 3, "acknowledges": True}
    pairs: list[tuple[str, dict[str, Any]]] = [
        ("hello", first),
        ("session-take", {}),
        ("beat", {"state": {"waiting": 1}}),
    ]
    made = [_framed(control(kind, body, version)) for kind, body in pairs for version in (1, 2)]
    return [*made, _framed([*control("hello", HELLO), b""]), _framed([b"", b""])]


def _mutated_frames(rng: Random, given: Sequence[bytes]) -> bytes:
    if rng.randrange(3) == 0:
        return mutate_bytes(rng, rng.choice(given), given)
    header = control("x", {}, rng.choice((1, 2)))[0]
    value = {"kind": rng.choice(("hello", "session-take", "beat", "mesh-state")), "body": HELLO}
    return _framed([header, written(rng, mutate_value(rng, value, ("speaks", "acknowledges")))])


ANSWERS = (
    message(
        "heartbeat",
        _report,
        STATE,
        ("jobs/status.py:read_report,_word,_ends,_work,_uses,_use,read_work",),
    ),
    message("kept", lambda body: read_kept(body, "b1"), KEPT_SLICE, ()),
    message(
        "board-facts",
        lambda body: _facts_in(body, "b1"),
        {
            "facts": FACTS,
            "memory_bytes": 1 << 30,
            "unreached": [KEYS[0].public],
            "kept": KEPT_SLICE,
        },
        (),
    ),
    message("mesh-pages", _pages, {**MESH, "next": 1}, ()),
    message("member", lambda body: _member(Fields(body)), MESH["boards"][0], ()),
    message(
        "reach-board",
        _reached,
        REACHED,
        ("jobs/cluster_check.py:_checked,_tried,judged",),
        *NOT_REACHED,
    ),
    sequence(
        "relay-daemon",
        _relay_daemon,
        [
            ("relay-open", {}),
            ("relay-send", {**CHUNK, "taken": 0}),
            ("says", {}),
            ("waits", {}),
            ("relay-send", {"data": "", "taken": 1}),
            ("relay-send", {**CHUNK, "taken": 1}),
            ("waits", {}),
            ("other", {}),
            ("relay-open", {}),
            ("ends", {}),
            ("goes", {}),
            ("is-none", {}),
            ("comes", {}),
            ("relay-open", {}),
        ],
        ("daemon/relay.py:Relays._open,Relays._send,Relays._write,Relays._read,Relays._taken",),
    ),
    sequence(
        "relay-hub",
        _relay_hub,
        [("relay-data", CHUNK), ("relay-taken", {}), ("turn", {}), ("relay-data", {"data": ""})],
        ("jobs/relay.py:read_chunk,Relay._on_push,Relay._write",),
    ),
    sequence(
        "credit",
        _credit,
        [("job-report", {"a": 1}), ("acknowledge", {"of": "job-report"}), ("heard", {})],
        ("mesh/transport/credit.py",),
    ),
    Target(
        "control-frames",
        _frames,
        _frame_samples,
        _mutated_frames,
        (
            "mesh/transport/messages.py:Dialect.read,read_control,_version_of,_parse,_depth,_unique,_integer,_finite,_refuse_constant",
        ),
        weight=12,
    ),
)
