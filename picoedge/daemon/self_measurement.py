"""What this board can do, as a process of its own measured it: `board_probe`.

Until that process has ended, what the last one measured counts: it is kept in the cluster's folder.
A process that fails is started again after a rest, and one whose memory a job wants, later.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import picoedge
from picoedge.daemon.memory.board_memory import PROBE
from picoedge.errors import PicoedgeError
from picoedge.fields import parse_json
from picoedge.host.processes import set_goes_first
from picoedge.host.sysfs import processor_name
from picoedge.mesh.cluster_folder import folder_lock, read_json, write_json

if TYPE_CHECKING:
    from picoedge.daemon.memory.board_memory import BoardMemory, BoardOptions
    from picoedge.mesh.transport.loop import Loop

    Start = Callable[[int], subprocess.Popen[bytes]]

FACTS_FILE = "facts.json"  # of the cluster folder
MOST_BYTES = 128 << 20  # of the process: NumPy, and a matrix larger than any processor cache
LEAST_BYTES = 64 << 20  # with less it waits, if there are figures of before
REST_S, LONGEST_REST_S = 5.0, 600.0  # after a process that failed, the first time and at most
ROOM_S = 30.0  # between two looks for room, and after a process that had to end for a job
MOST_S = 600.0  # of one process: a disk may not answer
_END_S = 5.0  # for a killed process to be gone: the system needs milliseconds


class SelfMeasurement:
    """Measures this board from now on. `facts`: what it can do, None while nothing is known.

    `memory` gives the process its room, `folder` is the cluster's, and `start` starts the process
    with so many bytes. Call `close` at the end.
    """

    def __init__(
        self,
        loop: Loop,
        memory: BoardMemory,
        folder: Path,
        options: BoardOptions,
        log: Callable[[str], object],
        start: Start | None = None,
    ) -> None:
        self._loop, self._memory, self._options, self._log = loop, memory, options, log
        self._path, self._start = folder / FACTS_FILE, start or self._start_probe
        self._process: subprocess.Popen[bytes] | None = None
        self._said, self._rest_s = b"", REST_S
        self._is_over = self._gave_way = self._leaves_scratch = False
        self.facts = self._read_kept()
        self._run()

    def _start_probe(self, nbytes: int) -> subprocess.Popen[bytes]:
        options = self._options
        threads = [] if options.threads is None else [str(options.threads)]
        words = ["picoedge.daemon.board_probe", str(options.shelf), str(nbytes), *threads]
        return subprocess.Popen(
            [sys.executable, "-m", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )

    # -- one process after another -------------------------------------------------------------

    def _run(self) -> None:
        if self._is_over:
            return
        nbytes = self._memory.give_probe(MOST_BYTES, self._give_way)
        if nbytes < LEAST_BYTES and self.facts is not None:
            self._memory.release(PROBE)
            self._loop.after(ROOM_S, self._run)
            return
        try:
            process = self._process = self._start(nbytes)
        except OSError as error:  # as there are too many
            return self._failed(f": {error.strerror}")
        assert process.stdout is not None
        set_goes_first(process.pid, first=True)
        self._said, self._gave_way = b"", False
        self._loop.add(process.stdout.fileno(), self._read)
        self._end_late = self._loop.after(MOST_S, process.kill)

    def _give_way(self) -> None:
        """A job wants the memory."""
        if self._process is not None:
            self._gave_way = self._leaves_scratch = True
            self._process.kill()

    def _read(self) -> None:
        """Read the process's few hundred bytes, or learn that it has ended."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        piece = os.read(process.stdout.fileno(), 1 << 16)
        self._said += piece
        if piece:
            return
        self._loop.remove(process.stdout.fileno())
        process.stdout.close()
        self._end_late()
        process.wait()
        self._process, facts = None, _facts_in(self._said)
        if facts is not None:
            self._memory.release(PROBE)
            self.facts, self._leaves_scratch = facts, False
            return self._keep(facts)
        self._leaves_scratch = True
        if not self._gave_way:
            return self._failed("")
        self._memory.release(PROBE)
        self._loop.after(ROOM_S, self._run)

    def _failed(self, why: str) -> None:
        self._memory.release(PROBE)
        rest_s, self._rest_s = self._rest_s, min(2 * self._rest_s, LONGEST_REST_S)
        again = f"tried again in {rest_s:.0f} s (picoedge doctor)"
        self._log(f"this board could not be measured{why}: {again}")
        self._loop.after(rest_s, self._run)

    # -- kept ----------------------------------------------------------------------------------

    def _of(self) -> dict[str, Any]:
        """What the figures hold for: the card may move to another board."""
        options = self._options
        return {
            "picoedge": picoedge.__version__,
            "processor": processor_name(),
            "threads": options.threads,
            "shelf": str(options.shelf),
        }

    def _read_kept(self) -> Mapping[str, Any] | None:
        with suppress(PicoedgeError):
            kept = read_json(self._path, "") or {}
            facts = kept.get("facts")
            if kept.get("of") == self._of() and isinstance(facts, dict):
                return facts
        return None

    def _keep(self, facts: Mapping[str, Any]) -> None:
        with suppress(PicoedgeError), folder_lock(self._path.parent):  # a card may be full
            write_json(self._path, {"of": self._of(), "facts": facts})

    def close(self) -> None:
        """End the process, and remove what it left on the shelf. Idempotent."""
        self._is_over = True
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # it may wait for a disk
                process.wait(_END_S)
            assert process.stdout is not None
            process.stdout.close()
        if process is not None or self._leaves_scratch:
            from picoedge.store.pack.atomic_folder import sweep

            self._leaves_scratch = False
            sweep(self._options.shelf)


def _facts_in(text: bytes) -> Mapping[str, Any] | None:
    try:
        facts = parse_json(text)
    except (ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None
