"""A peer that floods a process which reads nothing, then ends the connection."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import zmq

from picoedge.mesh.transport.curve import events, shut_down

PATIENCE_S = 20.0
GROWN_BYTES = 256 << 20  # where loopback floods by the gigabyte between two looks
# The victim reads nothing until a line comes; `grown` is printed and bounded by the test.
VICTIM = """
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

def idle():
    before = anonymous()
    print("idle", flush=True)
    sys.stdin.readline()
    return anonymous() - before
"""


@contextmanager
def victim(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that runs VICTIM and the script; its end is awaited."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys\n" + VICTIM + script, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@dataclass
class Hostile:
    """A socket with a monitor and one connection, whose messages begin with `route`."""

    socket: Any
    monitor: Any
    route: Sequence[bytes] = ()

    def end(self, file: int, message: bytes) -> None:
        """Fill a queue, and shut the connection down while the victim reads nothing."""
        for _ in range(2000):
            self.socket.send_multipart([*self.route, message])
        time.sleep(0.4)  # a heartbeat falls due on the connection that is full
        shut_down(file)
        time.sleep(0.4)  # and on the one that is gone

    def flood(self, message: bytes) -> None:
        """Send until the victim ends the connection."""
        end_s = time.monotonic() + PATIENCE_S
        while not any(event == zmq.EVENT_DISCONNECTED for event, _ in events(self.monitor)):
            assert time.monotonic() < end_s, "its victim takes all"
            if self.socket.poll(10, zmq.POLLOUT):
                try:
                    self.socket.send_multipart([*self.route, message], zmq.NOBLOCK)
                except zmq.ZMQError:
                    time.sleep(0.01)


def check(process: subprocess.Popen[str], last: str) -> None:
    """The victim lived, noticed, and is no larger."""
    out, err = process.communicate("\n", timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    grown, said = out.split(maxsplit=1)
    assert int(grown) < GROWN_BYTES
    assert last in said
