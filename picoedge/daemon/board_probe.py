"""What this board can do, measured: `… -m picoedge.daemon.board_probe SHELF [THREADS]`.

The daemon starts it: a process of its own, because it loads NumPy and the kernels and the daemon
is to stay small. It prints one JSON object: the facts that `cluster_facts.BoardFacts` has of a
board, less its name.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from picoedge.errors import PicoedgeError
from picoedge.mesh.group.tickets import TicketListener
from picoedge.mesh.transport.seal import ciphers, common
from picoedge.mesh.transport.sealed_stream import SealedStream

SCRATCH_BYTES = 64 << 20
FORMAT, COLS = "q4", 2048  # the matrix that stands for all models
SUM_BYTES, ECHOES = 16 << 10, 200
LOOPBACK, ECHO_S = "127.0.0.1", 5.0
LOOKS = 3  # at the speed of computing
UNKNOWN_DISK = 20e6  # bytes a second of a card that cannot be measured


def main() -> int:
    """Measure, and print."""
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else None
    print(json.dumps(measure_board(Path(sys.argv[1]), threads)))
    return 0


def measure_board(shelf: Path, threads: int | None = None) -> dict[str, Any]:
    """Speeds, and the memory a session takes beside the model's."""
    from picoedge.engine.fit import LARGE_MATRIX, fixed_bytes, probes_folder
    from picoedge.engine.open import start_kernels
    from picoedge.engine.options import OpenOptions
    from picoedge.host.cores import usable_cores
    from picoedge.host.kernel_benchmark import cached_compute, probe_compute
    from picoedge.host.reclaim import STILL_NEEDED, settle

    kernels = start_kernels(OpenOptions(threads=threads))
    try:
        settle()
        fixed = fixed_bytes() + STILL_NEEDED
        # What is kept may have been measured while others ran: the best of it and of now.
        kept = cached_compute(kernels, FORMAT, COLS, LARGE_MATRIX, cache=probes_folder())
        now = [probe_compute(kernels, FORMAT, COLS, LARGE_MATRIX) for _ in range(LOOKS)]
        compute = max(kept, *now)
        return {
            "cores": usable_cores(),
            "compute_bytes_per_s": compute,
            "fixed_bytes": fixed,
            "numpy": kernels.name == "numpy",
            "message_s": message_s(),
            **_disk(shelf),
        }
    finally:
        kernels.close()


def message_s() -> float:
    """Processor time of one sum's message at one end: a fourth of the way there and back.

    Both ends are in this process, over a loop-back, sealed as between boards.
    """
    first = b"hello"
    entrance = TicketListener(LOOPBACK, {1: first}, SUM_BYTES)
    with ExitStack() as stack:
        stack.callback(entrance.close)
        ticket = entrance.ticket(1, common(ciphers(), ciphers()))
        asker = ticket.connect(LOOPBACK, SUM_BYTES)
        stack.callback(asker.close)
        while not asker.flush():
            select.select([], [asker], [], ECHO_S)
        asker.send(first)
        echo = _entered(entrance)
        stack.callback(echo.close)
        times = [_echo_s(asker, echo) for _ in range(ECHOES)][ECHOES // 4 :]
    # The stops of a quota are not part of it: a board that waits for others between its messages
    # uses little of its share.
    return statistics.median(times) / 4


def _entered(entrance: TicketListener) -> SealedStream:
    while True:
        for _, stream in entrance.accepted():
            return stream
        select.select(entrance.files, [], [])


def _echo_s(asker: SealedStream, echo: SealedStream) -> float:
    began = time.perf_counter()
    _pass(bytes(SUM_BYTES), asker, echo)
    _pass(bytes(SUM_BYTES), echo, asker)
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
    reading = next(readings(Speeds(speed, 1.0), "auto"))
    return {
        "disk_bytes_per_s": reading.rates.disk,
        "read_io": reading.io,
        "read_ahead_bytes": reading.reserve,
    }


@contextmanager
def _scratch(shelf: Path) -> Iterator[Path]:
    """A folder like a pack's, on the shelf's file system: there may be no pack there yet."""
    shelf.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=shelf) as folder:
        noise = os.urandom(1 << 20)
        with open(os.path.join(folder, "scratch.safetensors"), "wb") as file:
            for _ in range(SCRATCH_BYTES >> 20):
                file.write(noise)
            file.flush()
            os.fsync(file.fileno())
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())
