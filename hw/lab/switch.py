"""The switch of a shaped lab, a process outside of all quotas: `python -m hw.lab.switch`.

It makes the boards' TAP devices and holds them: they end with it. Orders are lines of JSON on
stdin, each answered by one on stdout; it ends with its stdin. The first order is
{"namespaces": [descriptors], "shape": {...}}.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import random
import select
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

from hw.lab.fabric import Fabric
from hw.lab.links import LinkShape

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
CLONE_NEWNET = 0x40000000
FRAME = 1 << 16  # whole messages of 64 KB in one frame: Python's time is spent per frame
BURST = 16  # frames read from one port before the others have their turn


def make_tap() -> int:
    """A TAP device eth0 in this thread's namespace, as a descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TAP | IFF_NO_PI))
    return fd


def taps_in(namespaces: list[int]) -> list[int]:
    """One TAP device in each; this process does not stay in any."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    taps = []
    for namespace in [*namespaces, own]:
        if libc.setns(namespace, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        if namespace != own:
            taps.append(make_tap())
        os.close(namespace)
    return taps


def be_punctual() -> None:
    """Run before whatever the boards compute, and wake to the microsecond, as far as is allowed."""
    gc.disable()
    with contextlib.suppress(OSError):
        Path("/proc/self/timerslack_ns").write_text("1")
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    except OSError:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)


def answer(counts: dict[str, int]) -> None:
    """Tell the lab that it is done."""
    os.write(sys.stdout.fileno(), json.dumps(counts).encode() + b"\n")


class Switch:
    """Moves frames between devices as its fabric says."""

    def __init__(self, taps: list[int], fabric: Fabric) -> None:
        self._taps, self._fabric = taps, fabric
        self._ports = {tap: index for index, tap in enumerate(taps)}
        self._orders, self._partial = sys.stdin.fileno(), b""

    def run(self) -> None:
        """Until the orders end."""
        watched = [*self._taps, self._orders]
        while True:
            due = self._fabric.next_due()
            wait_s = None if due is None else max(0.0, due - time.monotonic())
            # Of all waits Python offers, only select's is told microseconds.
            ready, _, _ = select.select(watched, [], [], wait_s)
            for fd in ready:
                if fd != self._orders:
                    self._take_in(fd)
                elif not self._obey():
                    return
            for port, frame in self._fabric.leaving(time.monotonic()):
                with contextlib.suppress(OSError):  # a device that is down takes nothing
                    os.write(self._taps[port], frame)

    def _take_in(self, fd: int) -> None:
        port = self._ports[fd]
        try:
            for _ in range(BURST):
                frame = os.read(fd, FRAME)
                self._fabric.arrive(time.monotonic(), port, frame)
        except OSError:
            return  # BlockingIOError: that was all

    def _obey(self) -> bool:
        """Whether there are orders to come."""
        data = os.read(self._orders, 1 << 16)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            answer(self._order(json.loads(line)))
        return bool(data)

    def _order(self, order: dict[str, Any]) -> dict[str, int]:
        for source, target in order.get("ways", ()):
            way = self._fabric.way(source, target)
            if "cut" in order:
                way.is_cut = order["cut"]
            if "shape" in order:
                way.set(LinkShape(**order["shape"]))
        for port in order.get("ports", ()):
            self._fabric.uplinks[port].rate = order["rate"]
            self._fabric.downlinks[port].rate = order["rate"]
        return self._fabric.counts


def main() -> None:
    """See the file's beginning."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()  # no more comes before the answer
    if not line:
        return
    first = json.loads(line)
    taps = taps_in(first["namespaces"])
    be_punctual()
    fabric = Fabric(len(taps), LinkShape(**first["shape"]), random.random)
    with contextlib.suppress(BrokenPipeError):  # its lab was killed: that ends it too
        answer(fabric.counts)
        Switch(taps, fabric).run()


if __name__ == "__main__":
    main()
