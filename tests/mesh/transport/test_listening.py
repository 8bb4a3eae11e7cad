"""Listeners and probes of TCP, IPv4 and IPv6."""

from __future__ import annotations

import errno
import select
import socket
from typing import Any

import pytest
import zmq
from mesh_nodes import fresh_context

from picoedge.mesh.addresses import SILENT, Address, probe
from picoedge.mesh.interfaces import everywhere
from picoedge.mesh.transport import listening
from picoedge.mesh.transport.listening import bind_to, listen, listen_twice, mark

LOOPBACK = "127.0.0.1"


def test_the_first_free_port_of_a_range_is_taken() -> None:
    with listen(LOOPBACK) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match="in use"), listen(LOOPBACK, (port,)):
            pass
        with listen(LOOPBACK, (port, 0)) as second:
            assert second.getsockname()[1] != port


def test_no_port_to_listen_at() -> None:
    with pytest.raises(OSError, match="no port") as raised, listen(LOOPBACK, ()):
        pass
    assert raised.value.errno == errno.EADDRINUSE


@pytest.mark.skipif(everywhere() != "::", reason="no IPv6 here")
@pytest.mark.parametrize("host", [LOOPBACK, "::1"])
def test_everywhere_is_both_families(host: str) -> None:
    with fresh_context() as context:
        server: Any = context.socket(zmq.ROUTER)
        server.setsockopt(zmq.IPV6, 1)
        port = bind_to(server, listen("::"))
        server.bind("ipc://@picoedge-test-both-families")  # the next is bound as ever
        client: Any = context.socket(zmq.DEALER)
        client.setsockopt(zmq.IPV6, 1)
        client.connect(Address(host, port).endpoint)
        client.send(b"hello")
        assert server.poll(5000)
        assert server.recv_multipart()[1] == b"hello"


def test_probes_say_why_nothing_answers() -> None:
    with socket.socket() as listener, listen(LOOPBACK) as open_one:
        listener.bind((LOOPBACK, 0))
        silent, open_port = listener.getsockname()[1], open_one.getsockname()[1]
        addresses = [
            Address(LOOPBACK, silent), Address(LOOPBACK, open_port), Address("no..where", 1),
        ]  # fmt: skip
        failures = probe(addresses)
    assert failures[addresses[0]] == "nothing listens there"
    assert set(failures) == {addresses[0], addresses[2]}


def test_a_probe_of_what_never_answers_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen(LOOPBACK, backlog=0) as full:
        at = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(at)
        address = Address(*at)
        assert probe([address], 0.2) == {address: SILENT}
        for each in waiting:
            each.close()


@pytest.mark.parametrize("host", [LOOPBACK, "::1", "::"])
def test_marked_connections_come_to_the_second_listener_of_a_port(host: str) -> None:
    if ":" in host and everywhere() != "::":
        pytest.skip("no IPv6 here")
    plain, marked = listen_twice(host, 0)
    assert marked is not None
    with plain, marked:
        to = plain.getsockname()[1]
        assert to == marked.getsockname()[1]
        for at in (LOOPBACK, "::1") if host == "::" else (host,):
            for listener, is_marked in [(plain, False), (marked, True)] * 3:
                family = socket.AF_INET6 if ":" in at else socket.AF_INET
                with socket.socket(family) as client:
                    if is_marked:
                        mark(client)
                    client.connect((at, to))
                    ready, _, _ = select.select([plain, marked], [], [], 5)
                    assert ready == [listener]
                    listener.accept()[0].close()


def test_a_shared_port_is_refused_to_another_program() -> None:
    with listen(LOOPBACK) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            listen_twice(LOOPBACK, port)
    plain, marked = listen_twice(LOOPBACK, 0)
    assert marked is not None
    with plain, marked, pytest.raises(OSError, match="in use"):
        listen_twice(LOOPBACK, plain.getsockname()[1])


def test_where_marks_cannot_be_told_apart_there_is_one_listener(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listening, "SO_ATTACH_REUSEPORT_CBPF", 9999)
    plain, marked = listen_twice(LOOPBACK, 0)
    with plain, socket.socket() as client:
        assert marked is None
        mark(client)
        client.connect(plain.getsockname())
        plain.accept()[0].close()
