"""Measure this board: `python -m picoedge.daemon.board_probe SHELF BYTES [THREADS]`.

Started by the daemon as a process of its own, because it loads NumPy and the kernels and the
daemon must stay small; it takes at most BYTES of memory, if it can. It prints one JSON object: the
fields of `planner.topology.BoardFacts`, except the board's name, key and memory.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from picoedge.errors import PicoedgeError
from picoedge.mesh.group.ticket_listener import TicketListener
from picoedge.mesh.transport.sealed_stream import SealedStream, ciphers, common
from picoedge.store.pack.atomic_folder import scratch_folder, sweep

SCRATCH_BYTES = 64 << 20  # a second of a slow card, and more than its cache
FORMAT, COLS = "q4", 2048  # the matrix that stands for all models
LEAST_MATRIX = 4 << 20  # where memory is short: a matrix that caches may hold
SUM_BYTES = 16 << 10  # of a token's sum, f64, at a hidden size of 2048
ECHOES = 200  # a fourth is for warming up; the median of the others counts
LOOPBACK, ECHO_S = "127.0.0.1", 5.0  # for an answer of this very process: it takes microseconds
REPEATS = 3  # of the computing benchmark; the fastest counts
UNKNOWN_DISK = 20e6  # bytes per second assumed for a card that cannot be measured: a slow one


def main() -> int:
    """Measure, and print the facts; on stderr, why NumPy computes on this board."""
    from picoedge.host.processes import end_with_parent
    from picoedge.kernels.loader import describe_kernels

    end_with_parent(0)
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else None
    facts = measure_board(Path(sys.argv[1]), int(sys.argv[2]), threads)
    print(json.dumps(facts), flush=True)
    if facts["numpy"]:
        with suppress(OSError):  # its log may be on a card that is full
            print(f"picoedge: running on {describe_kernels()}", file=sys.stderr)
    return 0


def measure_board(shelf: Path, room: int, threads: int | None = None) -> dict[str, Any]:
    """Speeds of this board, and the memory of a job apart from the model's.

    `room`: bytes that this process may take.
    """
    from picoedge.engine.fit import fixed_bytes, probes_folder
    from picoedge.engine.open import start_kernels
    from picoedge.engine.options import OpenOptions
    from picoedge.host.kernel_benchmark import cached_compute, probe_compute
    from picoedge.host.reclaim import trim
    from picoedge.host.resources import REFAULT_BYTES, rss_bytes, usable_cores

    kernels = start_kernels(OpenOptions(threads=threads))
    try:
        message = message_s()  # first: it loads what seals streams, memory of every job
        trim()
        fixed = fixed_bytes() + REFAULT_BYTES
        nbytes = matrix_bytes(room - rss_bytes())
        # The saved figure may be from a busy moment: take the best of it and of now.
        kept = cached_compute(kernels, FORMAT, COLS, nbytes, cache=probes_folder())
        now = [probe_compute(kernels, FORMAT, COLS, nbytes) for _ in range(REPEATS)]
        compute = max(kept, *now)
        return {
            "cores": usable_cores(),
            "compute_bytes_per_s": compute,
            "fixed_bytes": fixed,
            "numpy": kernels.name == "numpy",
            "message_s": message,
            **_disk(shelf),
        }
    finally:
        kernels.close()


def matrix_bytes(room: int) -> int:
    """Of the matrix that is multiplied: larger than any processor cache, where there is room."""
    from picoedge.engine.fit import LARGE_MATRIX

    nbytes = LARGE_MATRIX
    while nbytes > max(room, LEAST_MATRIX):
        nbytes //= 2
    return nbytes


def message_s() -> float:
    """Processor seconds of one sum's message at one end: a quarter of a round trip.

    Both ends are in this process, over loopback, sealed as between boards.
    """
    first = b"hello"
    listener = TicketListener(LOOPBACK, SUM_BYTES)
    with ExitStack() as stack:
        stack.callback(listener.close)
        ticket = listener.ticket(1, first, common(ciphers(), ciphers()))
        dialer = ticket.connect(LOOPBACK, SUM_BYTES)
        stack.callback(dialer.close)
        while not dialer.flush():
            select.select([], [dialer], [], ECHO_S)
        dialer.send(first)
        echo = _accept(listener)
        stack.callback(echo.close)
        times = [_echo_s(dialer, echo) for _ in range(ECHOES)][ECHOES // 4 :]
    # The median leaves out pauses by a CPU quota: a board that waits between its messages has
    # quota to spare.
    return statistics.median(times) / 4


def _accept(listener: TicketListener) -> SealedStream:
    while True:
        for _, stream in listener.accepted():
            return stream
        select.select(listener.files, [], [])


def _echo_s(dialer: SealedStream, echo: SealedStream) -> float:
    began = time.perf_counter()
    _pass(bytes(SUM_BYTES), dialer, echo)
    _pass(bytes(SUM_BYTES), echo, dialer)
    return time.perf_counter() - began


def _pass(message: bytes, sender: SealedStream, receiver: SealedStream) -> None:
    sent = sender.send(message)
    while receiver.take() is None:
        sent = sent or sender.flush()


def _disk(shelf: Path) -> dict[str, Any]:
    from picoedge.engine.fit import Speeds, probes_folder, readings
    from picoedge.host.disk_speed import storage_speed

    try:
        with _scratch(shelf) as folder:
            speed = storage_speed(folder, cache=probes_folder())
    except (PicoedgeError, OSError):
        return {"disk_bytes_per_s": UNKNOWN_DISK}
    reading = readings(Speeds(speed, 1.0), "auto")[0]
    return {
        "disk_bytes_per_s": reading.rates.disk,
        "read_io": reading.io,
        "read_ahead_bytes": reading.reserve,
    }


@contextmanager
def _scratch(shelf: Path) -> Iterator[Path]:
    """A folder with a file to read, on the shelf's file system, which may hold no pack yet."""
    shelf.mkdir(parents=True, exist_ok=True)
    sweep(shelf)
    with scratch_folder(shelf) as folder:
        noise = os.urandom(1 << 20)
        with open(os.path.join(folder, "scratch.safetensors"), "wb") as file:
            for _ in range(SCRATCH_BYTES >> 20):
                file.write(noise)
            file.flush()
            os.fsync(file.fileno())
        yield folder


if __name__ == "__main__":
    sys.exit(main())
