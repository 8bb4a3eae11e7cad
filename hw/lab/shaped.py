"""Boards on TAP devices, joined by a switch process that shapes each link."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hw.lab.errors import LabError
from hw.lab.fabric import mac
from hw.lab.links import LinkShape
from hw.lab.namespaces import Namespace, python_path
from hw.lab.plain import QUIET, device_lines

# Of a TAP device the largest there is; a frame is this and the 14 bytes of its header.
MTU = 65521
_END_S = 5.0


class ShapedNetwork:
    """The switch, and the orders sent to it."""

    def __init__(self, boards: Sequence[tuple[Namespace, str]], shape: LinkShape) -> None:
        namespaces = [namespace.fd for namespace, _ in boards]
        self._switch = subprocess.Popen(
            [sys.executable, "-m", "hw.lab.switch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=namespaces,
            env=python_path(),
            start_new_session=True,
        )
        try:
            self._order(namespaces=namespaces, shape=asdict(shape))
            for index, (namespace, address) in enumerate(boards):
                namespace.shell(QUIET)
                device = f"link set eth0 address {mac(index).hex(':')} mtu {MTU} txqueuelen 1000"
                namespace.ip([device, *device_lines(address)])
        except BaseException:
            self.close()
            raise

    def _order(self, **order: Any) -> dict[str, int]:
        """Done when this returns: the switch answers with its counts of frames."""
        stdin, stdout = self._switch.stdin, self._switch.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(order).encode() + b"\n")
            stdin.flush()
            answer = stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            raise LabError("the lab's switch has ended: its last words are on stderr")
        counts: dict[str, int] = json.loads(answer)
        return counts

    def shape(self, ways: Sequence[tuple[int, int]], shape: LinkShape) -> None:
        """Shape ways from one board to another anew."""
        self._order(ways=ways, shape=asdict(shape))

    def cut(self, ways: Sequence[tuple[int, int]], cut: bool) -> None:
        """Cut or heal ways from one board to another; frames on their way are lost too."""
        self._order(ways=ways, cut=cut)

    def limit_port(self, board: int, bytes_per_s: float | None) -> None:
        """What all of a board's links share, each direction by itself; None: no limit."""
        self._order(ports=[board], rate=bytes_per_s)

    def counts(self) -> dict[str, int]:
        """Frames until now: passed, lost (by chance), cut, full (no room in a queue)."""
        return self._order()

    def close(self) -> None:
        """End the switch, and with it the devices."""
        for stream in (self._switch.stdin, self._switch.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        try:
            self._switch.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._switch.kill()
            self._switch.wait()
