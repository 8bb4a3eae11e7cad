"""The daemon's network half: admission, answers, notifications."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mesh_nodes import LOOPBACK, PATIENCE_S, Running, found, fresh_context, running

from picoedge.errors import AccessError, BoardLostError, MeshError, UsageError
from picoedge.mesh.addresses import Address
from picoedge.mesh.identity.identity import KeyPair, load_signing_key
from picoedge.mesh.identity.roster import RosterFile
from picoedge.mesh.node.liveness import Change
from picoedge.mesh.transport.client import Client
from picoedge.mesh.transport.frames import Header, Kind, unpack
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits
from picoedge.mesh.transport.messages import Pending, RawReply
from picoedge.mesh.transport.server import Sender, Server


@pytest.fixture
def context() -> Iterator[Any]:
    with fresh_context() as made:
        yield made


@pytest.fixture
def ada(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    """A running board that answers "echo"; "bob" is let in, and does not run."""
    first, second = found(tmp_path, "ada", "bob")
    node = Running(first, limits=getattr(request, "param", DEFAULT_LIMITS))
    node.bob = second.keys  # type: ignore[attr-defined]
    node.node.rpc.on("echo", lambda peer, body: {"from": str(peer), "text": body["text"]})
    with running(node):
        yield node


def test_an_allowed_key_is_answered(ada: Any, context: Any) -> None:
    with ada.client(context, ada.bob) as client:
        answer = client.ask("echo", {"text": "ä"})
        assert (answer["from"], answer["text"]) == (ada.bob.public, "ä")
        with pytest.raises(MeshError, match="board ada: this board knows nothing of 'sing'"):
            client.ask("sing")


def sender_of(ada: Any, client: Client) -> Any:
    """The Sender that this client is to the daemon."""
    senders: list[Any] = []
    ada.do(lambda: ada.node.rpc.on("remember", lambda peer, body: (senders.append(peer), {})[1]))
    client.ask("remember")
    client.ask("echo", {"text": ""})  # which reads the events of connecting off its monitor
    return senders[0]


NOTIFICATIONS = 600  # two and a half minutes of reports
ENDED_MS = 1500  # a connection that heartbeats end has ended by then
# A daemon sends a few messages a second, and its queue has room for many seconds of them. Here
# minutes pass in a burst: the queue must have room for all of it, whenever ZeroMQ's thread runs.
sends_minutes_at_once = pytest.mark.parametrize(
    "ada", [Limits(queued_messages=2 * NOTIFICATIONS)], indirect=True, ids=["minutes at once"]
)


@sends_minutes_at_once
def test_a_client_that_does_not_read_for_minutes_keeps_its_connection(
    ada: Any, context: Any
) -> None:
    with ada.client(context, ada.bob) as client:
        sender = sender_of(ada, client)
        for number in range(NOTIFICATIONS):
            assert ada.do(lambda number=number: ada.node.rpc.push(sender, "note", {"n": number}))
        assert not client.monitor.poll(ENDED_MS)
        notes = client.notifications()
        while len(notes) < NOTIFICATIONS and client.socket.poll(PATIENCE_S * 1000):
            notes += client.notifications()
        assert [body["n"] for _, body in notes] == list(range(NOTIFICATIONS))
        assert client.ask("echo", {"text": "still here"})["text"] == "still here"


@sends_minutes_at_once
def test_a_connection_that_ends_before_its_messages_are_read_is_an_error(
    ada: Any, context: Any
) -> None:
    limits = Limits(client_bytes=1000)
    with Client(context, ada.bob, ada.address, ada.key, "ada", limits=limits) as client:
        sender = sender_of(ada, client)
        end_s = time.monotonic() + PATIENCE_S
        while not client.monitor.poll(50):  # until more is queued than it may hold
            assert time.monotonic() < end_s
            for number in range(50):
                ada.do(lambda number=number: ada.node.rpc.push(sender, "note", {"n": number}))
        with pytest.raises(BoardLostError, match="its connection ended"):
            list(iter(client.notifications, []))


@pytest.mark.parametrize("ada", [Limits(queued_messages=2)], indirect=True, ids=["short queue"])
def test_a_client_that_never_reads_its_reports_keeps_its_connection(ada: Any, context: Any) -> None:
    """Reports come without end; its queue has room for two messages, and the daemon's as well."""
    limits = Limits(client_messages=2)
    with Client(context, ada.bob, ada.address, ada.key, "ada", limits=limits) as client:
        sender = sender_of(ada, client)

        def report() -> None:
            for number in range(NOTIFICATIONS):
                ada.node.rpc.push_newest(sender, "report", {"n": number})

        for _ in range(20):
            ada.do(report)
        assert not client.monitor.poll(ENDED_MS)
        newest = 0
        while newest < NOTIFICATIONS - 1 and client.socket.poll(PATIENCE_S * 1000):
            for kind, body in client.notifications():
                assert kind == "report"
                assert body.keys() == {"n"}
                newest = body["n"]
        assert newest == NOTIFICATIONS - 1
        assert client.ask("echo", {"text": "still here"})["text"] == "still here"


def test_a_report_that_the_next_one_replaces_is_kept_once(ada: Any, context: Any) -> None:
    """A client that asks, and ignores pushed messages meanwhile."""
    with ada.client(context, ada.bob) as client:
        sender = sender_of(ada, client)
        for number in range(50):
            ada.do(lambda n=number: ada.node.rpc.push_newest(sender, "report", {"n": n}))
            client.ask("echo", {"text": ""})
        assert len(client.notifications()) <= 1


def test_an_unknown_key_gets_nothing(ada: Any, context: Any) -> None:
    asked: list[str] = []
    ada.do(lambda: ada.node.rpc.on("any", lambda peer, body: asked.append(peer)))
    with (
        ada.client(context, KeyPair.new()) as client,
        pytest.raises(AccessError, match=r"ada at 127.* does not let this board in"),
    ):
        client.ask("any")
    assert not asked


def test_the_server_must_have_the_key_it_is_known_by(ada: Any, context: Any) -> None:
    ada.key = KeyPair.new().public
    with (
        ada.client(context, ada.bob) as client,
        pytest.raises(BoardLostError, match="the board there is not ada"),
    ):
        client.ask("echo", {"text": ""}, timeout_s=0.3)


def test_errors_come_back_as_they_were(ada: Any, context: Any) -> None:
    def refuse(peer: str, body: Any) -> None:
        raise AccessError("not today", "come tomorrow")

    def overrun(peer: str, body: Any) -> None:
        raise UsageError("too much")

    ada.do(lambda: (ada.node.rpc.on("refuse", refuse), ada.node.rpc.on("overrun", overrun)))
    with ada.client(context, ada.bob) as client:
        with pytest.raises(AccessError, match=r"board ada: not today \(come tomorrow\)"):
            client.ask("refuse")
        with pytest.raises(MeshError, match="board ada: too much"):
            client.ask("overrun")


def test_a_fault_of_a_handler_is_its_askers_only(
    ada: Any, context: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    ada.do(lambda: ada.node.rpc.on("faulty", lambda peer, body: {}["nothing"]))
    with ada.client(context, ada.bob) as client:
        with pytest.raises(MeshError, match="a fault in answering 'faulty'"):
            client.ask("faulty")
        assert client.ask("echo", {"text": "still"})["text"] == "still"
    assert "KeyError" in capfd.readouterr().err


def test_an_answer_may_come_later(ada: Any, context: Any) -> None:
    waiting: list[Pending] = []

    def queue(peer: str, body: Any) -> Pending:
        waiting.append(Pending())
        return waiting[-1]

    ada.do(lambda: ada.node.rpc.on("queue", queue))
    ada.do(lambda: ada.node.rpc.on("go", lambda peer, body: waiting[0].answer({"turn": 1})))
    with ada.client(context, ada.bob) as first, ada.client(context, ada.bob) as second:
        first.ask("echo", {"text": "connected"})
        with pytest.raises(BoardLostError, match="took the question and is silent"):
            first.ask("queue", timeout_s=0.1)
        second.ask("go")
        assert first.ask("echo", {"text": "after"})["text"] == "after"  # the late one is skipped


def test_only_so_many_answers_may_be_owed(ada: Any, context: Any) -> None:
    ada.do(lambda: ada.node.rpc.on("never", lambda peer, body: Pending()))
    with ada.client(context, ada.bob) as client:
        for _ in range(DEFAULT_LIMITS.pending_per_connection):
            with pytest.raises(BoardLostError, match="silent"):
                client.ask("never", timeout_s=0.001 if client.ask("echo", {"text": ""}) else 0)
        with pytest.raises(BoardLostError, match="connection ended"):
            client.ask("never")
    ada.wait(lambda: any("wait for an answer" in line for line in ada.lines))


def test_raw_answers(ada: Any, context: Any) -> None:
    header = Header(Kind.SHARD, shape=(4,), sequence=7)
    ada.do(
        lambda: ada.node.rpc.on("shard", lambda peer, body: RawReply(header, memoryview(b"abcd")))
    )
    with ada.client(context, ada.bob) as client:
        frames = client.ask_raw("shard")
        assert unpack(frames[0]).sequence == 7
        assert frames[1] == b"abcd"


def test_an_asker_is_told_over_its_own_connection(ada: Any, context: Any) -> None:
    senders: list[Sender] = []
    ada.do(lambda: ada.node.rpc.on("listen", lambda peer, body: senders.append(peer)))
    with ada.client(context, ada.bob) as one, ada.client(context, ada.bob) as other:
        one.ask("listen")
        other.ask("listen")
        assert senders[0] == senders[1] == ada.bob.public
        assert ada.do(lambda: ada.node.rpc.push(senders[0], "news", {"n": 1}))
        one.socket.poll(PATIENCE_S * 1000)
        assert one.notifications() == [("news", {"n": 1})]
        assert other.notifications() == []


def test_a_client_that_vanishes_is_known_to_be_gone(ada: Any, context: Any) -> None:
    gone: list[Sender] = []
    ada.do(lambda: ada.node.rpc.on_gone(lambda sender: (gone.append(sender), ada._wake())))
    sender = None
    with ada.client(context, ada.bob) as client:
        senders: list[Sender] = []
        ada.do(lambda: ada.node.rpc.on("listen", lambda peer, body: senders.append(peer)))
        client.ask("listen")
        sender = senders[0]
        assert not gone
    ada.wait(lambda: bool(gone))
    assert gone[0].route == sender.route
    assert not ada.do(lambda: ada.node.rpc.push(sender, "news", {}))


def test_a_client_that_does_not_read_loses_its_connection(ada: Any, context: Any) -> None:
    senders: list[Sender] = []
    gone: list[Sender] = []
    ada.do(lambda: ada.node.rpc.on("listen", lambda peer, body: senders.append(peer)))
    ada.do(lambda: ada.node.rpc.on_gone(lambda sender: (gone.append(sender), ada._wake())))
    body = {"text": "x" * 200_000}

    def flood() -> int:
        return next(n for n in range(10_000) if not ada.node.rpc.push(senders[0], "news", body))

    with ada.client(context, ada.bob) as client, ada.client(context, ada.bob) as other:
        client.ask("listen")
        assert ada.do(flood) < 2000
        ada.wait(lambda: bool(gone))
        assert other.ask("echo", {"text": "well"})["text"] == "well"


def test_a_revoked_key_loses_everything_at_once(ada: Any, context: Any) -> None:
    signing = load_signing_key(ada.identity.folder)
    with ada.client(context, ada.bob) as client:
        client.ask("echo", {"text": ""})
        ada.do(
            lambda: ada.node.roster_file.update(lambda r: r.with_revoke(signing, ada.bob.public))
        )
        ada.do(ada.node.peers.roster_changed)
        assert ada.changes == [(ada.bob.public, Change.REVOKED)]
        with pytest.raises(BoardLostError, match="connection ended"):
            client.ask("echo", {"text": ""})
    with ada.client(context, ada.bob) as again, pytest.raises(AccessError):
        again.ask("echo", {"text": ""})


def ask_for_ever(client: Client) -> None:
    while True:
        client.ask("echo", {"text": ""})


def test_revoked_by_another_process(ada: Any, context: Any) -> None:
    signing = load_signing_key(ada.identity.folder)
    with ada.client(context, ada.bob) as client:
        client.ask("echo", {"text": ""})
        RosterFile(ada.identity.folder).update(lambda r: r.with_revoke(signing, ada.bob.public))
        with pytest.raises(BoardLostError, match="connection ended"):
            ask_for_ever(client)


def test_an_address_in_use(tmp_path: Path, context: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(MeshError, match=r"in use by another program.*--listen"):
            Server(context, KeyPair.new(), address, lambda key: False)


def test_an_address_that_is_not_ours(context: Any) -> None:
    with pytest.raises(MeshError, match=r"cannot listen on 192\.0\.2\.1:7433"):
        Server(context, KeyPair.new(), Address("192.0.2.1", 7433), lambda key: False)


def test_a_port_of_the_systems_choice(context: Any) -> None:
    server = Server(context, KeyPair.new(), LOOPBACK, lambda key: False)
    assert server.address.port > 0
    server.close()
    server.close()
