"""What this board can do, measured: `… -m picoedge.engine.board_probe SHELF [THREADS]`.

The daemon starts it: a process of its own, because it loads NumPy and the kernels and the daemon
is to stay small. It prints one JSON object: the facts that `cluster_facts.BoardFacts` has of a
board, less its name.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from picoedge.engine.cores import is_rationed
from picoedge.errors import PicoedgeError
from picoedge.mesh.curve import Bounds, Gate, dial, serve
from picoedge.mesh.keys import KeyPair

SCRATCH_BYTES = 64 << 20
FORMAT, COLS = "q4", 2048  # the matrix that stands for all models
SUM_BYTES, ECHOES = 16 << 10, 200
LOOKS = 3  # at the speed of computing
UNKNOWN_DISK = 20e6  # bytes a second of a card that cannot be measured


def main() -> int:
    """Measure, and print."""
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else None
    print(json.dumps(measure_board(Path(sys.argv[1]), threads)))
    return 0


def measure_board(shelf: Path, threads: int | None = None) -> dict[str, Any]:
    """Speeds, and the memory a session takes beside the model's."""
    from picoedge.engine.compute import cached_compute, probe_compute
    from picoedge.engine.cores import usable_cores
    from picoedge.engine.fitting import LARGE_MATRIX, fixed_bytes, probes_folder
    from picoedge.engine.libraries import STILL_NEEDED, settle
    from picoedge.engine.open_options import OpenOptions
    from picoedge.engine.opened import start_kernels

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

    Both ends are in this process, over a loop-back, with keys as between boards.
    """
    server, client = KeyPair.new(), KeyPair.new()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate, echo = Gate(context, lambda key: key == client.public), context.socket(zmq.ROUTER)
    asker = context.socket(zmq.DEALER)
    try:
        serve(echo, server, Bounds())
        port = echo.bind_to_random_port("tcp://127.0.0.1")
        dial(asker, client, server.public, Bounds())
        asker.connect(f"tcp://127.0.0.1:{port}")
        times = [_echo_s(gate, echo, asker) for _ in range(ECHOES)][ECHOES // 4 :]
        # Where a quota stops this board for a while, that is part of what a message takes.
        return (statistics.fmean if is_rationed() else statistics.median)(times) / 4
    finally:
        gate.close()
        context.destroy(linger=0)


def _echo_s(gate: Gate, echo: zmq.Socket[bytes], asker: zmq.Socket[bytes]) -> float:
    began = time.perf_counter()
    asker.send(bytes(SUM_BYTES))
    while not echo.poll(1):
        if gate.socket.poll(0):
            gate.answer()
    echo.send_multipart(echo.recv_multipart())
    asker.recv()
    return time.perf_counter() - began


def _disk(shelf: Path) -> dict[str, Any]:
    from picoedge.engine.fitting import Speeds, probes_folder, readings
    from picoedge.engine.storage import storage_speed

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
