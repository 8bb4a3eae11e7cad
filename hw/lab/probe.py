"""What a link really does: a ping (a small echo over TCP) and a bulk transfer, between processes.

`python -m hw.lab.probe serve ADDRESS SECONDS` on one board, `... ask ADDRESS PORT` on the other.
Both run outside the boards' limits: it is the link that is measured.
"""

from __future__ import annotations

import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hw.lab.errors import LabError
from hw.lab.namespaces import python_path

if TYPE_CHECKING:
    from hw.lab.boards import Board

PINGS = 30
BLOCK = 1 << 18
WARM_UP_S = 0.3
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Achieved:
    """Between two boards, by name: the median ping, there and back, and what bulk arrives."""

    pair: tuple[str, str]
    ping_ms: float
    bulk_bytes_per_s: float


def measure(asking: Board, serving: Board, seconds: float) -> Achieved:
    """Ping from one board to another and send to it for so long. Raises LabError."""
    server = _spawn(serving, "serve", serving.address, str(seconds))
    started = [server]
    try:
        client = _spawn(asking, "ask", serving.address, _line(server, seconds))
        started.append(client)
        ping_ms = float(_line(client, seconds))
        return Achieved((asking.name, serving.name), ping_ms, float(_line(server, seconds)))
    except ValueError as error:
        last = client.communicate()[1].strip().splitlines()[-1:]
        raise LabError(f"{asking.name} does not reach {serving.name}: {last}") from error
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _line(process: subprocess.Popen[str], seconds: float) -> str:
    """What it prints next; nothing if it ends, or is not done by far."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _TIMEOUT_S + 2 * seconds)
    if not ready:
        process.kill()
    return process.stdout.readline().strip()


def _spawn(board: Board, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*board.namespace.prefix, sys.executable, "-m", "hw.lab.probe", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=python_path(),
    )


# -- on the boards ---------------------------------------------------------------------------------


def serve(address: str, seconds: float) -> None:
    """Echo on the first connection; take in what the second brings, and print bytes a second."""
    with socket.create_server((address, 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()
        connection, _ = listener.accept()
        with connection:
            print(_take_in(connection, seconds), flush=True)


def _echo(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(BLOCK):
            connection.sendall(data)


def _take_in(connection: socket.socket, seconds: float) -> float:
    """Bytes a second, for so long once TCP has found its pace."""
    buffer = bytearray(BLOCK)
    connection.recv_into(buffer)
    began = time.perf_counter()
    while time.perf_counter() < began + WARM_UP_S and connection.recv_into(buffer):
        continue
    began = now = time.perf_counter()
    taken, n = 0, 1
    while n and now < began + seconds:
        n = connection.recv_into(buffer)
        taken += n
        now = time.perf_counter()
    return taken / (now - began)


def ask(address: str, port: int) -> None:
    """Print the ping in ms, then send until this process or the other end is killed."""
    print(1e3 * statistics.median(pings(address, port)[1:]), flush=True)
    with socket.create_connection((address, port), _TIMEOUT_S) as connection:
        while True:
            connection.sendall(bytes(BLOCK))


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


def main(arguments: list[str]) -> None:
    """See the file's beginning."""
    if arguments[0] == "serve":
        serve(arguments[1], float(arguments[2]))
    else:
        ask(arguments[1], int(arguments[2]))


if __name__ == "__main__":
    main(sys.argv[1:])
