"""Connections for a worker that come to its daemon's port, marked, are handed on to it."""

from __future__ import annotations

import array
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mesh_nodes import Running, found, running

from picoedge.daemon.handover import Handover
from picoedge.jobs.relay import new_endpoint
from picoedge.mesh.group.handed import HandedConnections, handed_name
from picoedge.mesh.transport.listening import mark

WAIT_S = 20.0


@pytest.fixture
def worker() -> Iterator[tuple[str, HandedConnections]]:
    """A worker's endpoint, and what it is handed."""
    endpoint = new_endpoint()
    handed = HandedConnections(handed_name(endpoint))
    yield endpoint, handed
    handed.close()
    handed.close()


def test_a_marked_connection_is_the_workers(
    tmp_path: Path, worker: tuple[str, HandedConnections]
) -> None:
    endpoint, handed = worker
    ada: Any = Running(found(tmp_path, "ada")[0])
    handover = Handover(ada.node.rpc, lambda: endpoint)
    with running(ada), socket.socket() as client:
        mark(client)
        client.settimeout(WAIT_S)
        client.connect((ada.address.host, ada.address.port))
        assert select.select([handed], [], [], WAIT_S)[0]
        (connection,) = handed
        with connection:
            connection.sendall(b"hello")
            assert client.recv(5) == b"hello"
            client.sendall(b"and back")
            assert connection.recv(8) == b"and back"
        assert client.recv(1) == b""  # no other process holds it
        ada.do(handover.close)
        ada.do(handover.close)


def test_without_a_worker_it_is_closed(tmp_path: Path) -> None:
    ada: Any = Running(found(tmp_path, "ada")[0])
    endpoints = ["", new_endpoint()]
    handover = Handover(ada.node.rpc, endpoints.pop)
    with running(ada):
        for _ in range(2):
            with socket.socket() as client:
                mark(client)
                client.settimeout(WAIT_S)
                client.connect((ada.address.host, ada.address.port))
                assert client.recv(1) == b""
        ada.do(handover.close)


def test_a_file_that_is_no_connection_is_not_taken(worker: tuple[str, HandedConnections]) -> None:
    endpoint, handed = worker
    reader, writer = os.pipe()
    pair = socket.socketpair()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, pair[0], pair[1]:
        to = f"\0{handed_name(endpoint)}"
        sender.sendto(b"", to)
        sender.sendto(b"words", to)
        files = array.array("i", [reader, pair[0].fileno()])
        sender.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)], 0, to)
        found_ones = list(handed)
        assert len(found_ones) == 1
        found_ones[0].close()
    os.close(reader)
    os.set_blocking(writer, False)
    with pytest.raises(BrokenPipeError):  # no copy of the other end is left
        os.write(writer, b"x")
    os.close(writer)
