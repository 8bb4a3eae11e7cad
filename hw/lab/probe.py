"""What a link really does: a ping (a small echo over TCP) and a bulk transfer, between processes.

`python -m hw.lab.probe serve ADDRESS` on one board, `... ask ADDRESS PORT SECONDS` on the other.
Both run outside the boards' limits: it is the link that is measured.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hw.lab.errors import LabError
from hw.lab.namespaces import python_path

if TYPE_CHECKING:
    from hw.lab.boards import Board

PINGS = 30
BLOCK = 1 << 18
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Achieved:
    """Between two boards, by name: the median ping, there and back, and what bulk arrives."""

    pair: tuple[str, str]
    ping_ms: float
    bulk_bytes_per_s: float


def measure(asking: Board, serving: Board, seconds: float) -> Achieved:
    """Ping from one board to another and send to it for so long. Raises LabError."""
    server = _spawn(serving, "serve", serving.address)
    client = None
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        client = _spawn(asking, "ask", serving.address, port, str(seconds))
        answer, errors = client.communicate(timeout=_TIMEOUT_S + 10 * seconds)
        if client.returncode:
            last = (errors.strip().splitlines() or ["no reason"])[-1]
            raise LabError(f"{asking.name} does not reach {serving.name}: {last}")
        return Achieved((asking.name, serving.name), **json.loads(answer))
    finally:
        for process in filter(None, (client, server)):
            process.kill()
            process.communicate()


def _spawn(board: Board, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*board.namespace.prefix, sys.executable, "-m", "hw.lab.probe", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=python_path(),
    )


# -- on the boards ---------------------------------------------------------------------------------


def serve(address: str) -> None:
    """Echo on the first connection; take in all of the second and answer with bytes a second."""
    with socket.create_server((address, 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()
        connection, _ = listener.accept()
        with connection:
            connection.sendall(json.dumps(_take_in(connection)).encode())


def _echo(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(BLOCK):
            connection.sendall(data)


def _take_in(connection: socket.socket) -> float:
    """Bytes a second, from the first that came to the last."""
    buffer, taken = bytearray(BLOCK), 0
    connection.recv_into(buffer)
    began = time.perf_counter()
    while n := connection.recv_into(buffer):
        taken += n
    return taken / (time.perf_counter() - began)


def ask(address: str, port: int, seconds: float) -> dict[str, Any]:
    """The figures of Achieved, as seen from here."""
    ping_ms = 1e3 * statistics.median(pings(address, port)[1:])
    return {"ping_ms": ping_ms, "bulk_bytes_per_s": send(address, port, seconds)}


def pings(address: str, port: int) -> list[float]:
    """Seconds there and back of small messages, one after the other."""
    taken = []
    with socket.create_connection((address, port), _TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(PINGS):
            began = time.perf_counter()
            connection.sendall(bytes(64))
            left = 64
            while left:
                left -= len(connection.recv(left))
            taken.append(time.perf_counter() - began)
    return taken


def send(address: str, port: int, seconds: float) -> float:
    """Send for so long; what arrived a second, as the other side saw it."""
    block = bytes(BLOCK)
    with socket.create_connection((address, port), _TIMEOUT_S) as connection:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            connection.sendall(block)
        connection.shutdown(socket.SHUT_WR)
        return float(json.loads(connection.recv(100)))


def main(arguments: list[str]) -> None:
    """See the file's beginning."""
    if arguments[0] == "serve":
        serve(arguments[1])
    else:
        print(json.dumps(ask(arguments[1], int(arguments[2]), float(arguments[3]))))


if __name__ == "__main__":
    main(sys.argv[1:])
