"""One board of a measurement of sums, in the lab: `python -m bench.mesh_sum_rank`.

A request in JSON on stdin. `echo`: plain TCP, the hub sends to all and has it back from all. `star`
and `exchange`: the mesh's own, with its links, their keys and encryption. A board that listens
prints its port; the hub prints the seconds between two sums, or echoes, in its last line.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from typing import Any

import numpy as np
import zmq

from picoedge.cluster.forward_pass import ForwardPass, Stages
from picoedge.jobs.group_links import hub_rule
from picoedge.mesh.group.channel import ArrayLimits, Channel
from picoedge.mesh.group.codecs import codecs_for
from picoedge.mesh.group.links import Links
from picoedge.mesh.identity.identity import KeyPair

HUB, EPOCH, OPEN_S = 0, 1, 30.0
ROWS = ArrayLimits(rows=1, width=2048)  # 16 KB in f64
NBYTES = ROWS.width * 8


def main() -> None:
    """Answer one request."""
    request = json.loads(sys.stdin.readline())
    seconds = (echo if request["kind"] == "echo" else summed)(request)
    if request["rank"] == HUB:
        print(json.dumps({"seconds": seconds}), flush=True)


def tell_port(port: int) -> None:
    """Print the port, for the parent."""
    print(json.dumps({"port": port}), flush=True)


# -- the mesh's sums -------------------------------------------------------------------------------


def summed(request: dict[str, Any]) -> list[float]:
    """Seconds of each sum."""
    rank, count = request["rank"], len(request["publics"])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    bounds = ROWS.socket_bounds()
    links = Links(
        context, KeyPair.of_secret(request["secret"]), rank, EPOCH, bounds, rule=hub_rule(rank)
    )
    others = [r for r in range(count) if r != rank]
    if request["kind"] == "star" and rank != HUB:
        others = [HUB]
    try:
        for other in others:
            links.add(other, request["publics"][other], f"board{1 + other}")
        if rank != HUB:
            tell_port(links.listen(request["host"]))
        for other, address in request["addresses"].items():
            if int(other) in others:
                links.connect(int(other), address)
        links.open(OPEN_S)
        sums = request["sums"]
        made = forward_pass(links, request["kind"], count, sums)
        return _sums(made, sums, rank == HUB)
    finally:
        links.close()
        context.destroy(linger=1000)


def forward_pass(links: Links, kind: str, count: int, sums: int) -> ForwardPass:
    """The rank's side of one forward pass of that many sums, and two that are not timed."""
    ranks = tuple(range(count))
    channel = Channel(links, ranks, ROWS, codecs_for("f64", ROWS.width))
    owners = None if kind == "exchange" else (HUB,)
    return ForwardPass(channel, Stages(ranks, ranks, sums // 2 + 1), owners=owners)


def _sums(made: ForwardPass, sums: int, hub: bool) -> list[float]:
    values = np.ones((1, ROWS.width))
    if hub:
        made.input(np.zeros((1, ROWS.width), np.float32), 0)
    else:
        assert made.next_input() is not None
    seconds = []
    for _ in range(2 * (sums // 2 + 1)):
        began = time.perf_counter()
        made.begin(values)()
        seconds.append(time.perf_counter() - began)
        values.fill(1.0)
    if hub:
        made.channel.close()  # says goodbye
    else:
        assert made.next_input() is None
    return seconds[1:-1]  # the first waits for the last board, the last is the hub's alone


# -- the echo --------------------------------------------------------------------------------------


def echo(request: dict[str, Any]) -> list[float]:
    """Seconds from sending to all until all of it is back from all."""
    if request["rank"] == HUB:
        return ask_all(list(request["addresses"].values()), request["sums"])
    with socket.create_server((request["host"], 0)) as listener:
        tell_port(listener.getsockname()[1])
        connection, _ = listener.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray(NBYTES)
        while _filled(connection, buffer):
            connection.sendall(buffer)
    return []


def _filled(connection: socket.socket, buffer: bytearray) -> bool:
    view, at = memoryview(buffer), 0
    while at < len(buffer):
        n = connection.recv_into(view[at:])
        if not n:
            return False
        at += n
    return True


def ask_all(addresses: list[str], times: int) -> list[float]:
    """The hub's side, one echo after the other."""
    sockets = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        sockets.append(socket.create_connection((host, int(port)), OPEN_S))
        sockets[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    seconds, message = [], bytes(NBYTES)
    for _ in range(times):
        began = time.perf_counter()
        for each in sockets:
            each.sendall(message)
        left = dict.fromkeys(sockets, NBYTES)
        while left:
            for each in select.select(list(left), [], [])[0]:
                left[each] -= len(each.recv(NBYTES))
                if not left[each]:
                    del left[each]
        seconds.append(time.perf_counter() - began)
    for each in sockets:
        each.close()
    return seconds


if __name__ == "__main__":
    main()
