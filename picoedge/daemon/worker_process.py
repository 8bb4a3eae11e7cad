"""A worker process as its daemon sees it: started, listened to, watched, ended."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from picoedge.host.resources import rss_bytes_of, state_of, storage_bytes_read
from picoedge.jobs.progress_page import ProgressPage, new_page
from picoedge.jobs.spec import WorkerConfig

LINE_BYTES = 64 << 10  # of one message: the longest is a failure of 4,000 characters
EXIT_S = 2.0  # for a killed process to be reaped; a process that waits for its disk takes longer
# A worker in the kernel's disk sleep that has read nothing for so long is stalled. A sound card
# answers a read within tenths of a second; a worker that streams weights is in that sleep often.
STALL_S = 2.0
_SIGNALS: dict[int, str] = {
    signal.SIGKILL: "killed: by hand, or by the kernel for want of memory",
    signal.SIGTERM: "terminated",
    signal.SIGSEGV: "crashed",
    signal.SIGBUS: "a file of its weights can no longer be read",
    signal.SIGILL: "this processor lacks an instruction its kernels use",
}


class WorkerProcess:
    """`python -m module`, started by the constructor with `config` on its stdin.

    `on_line` receives each JSON object the worker prints. `stdout` and `pidfd` are for an event
    loop: call `read` when the first is readable, and `why_ended` when the second is. A worker that
    has kept its slice is given its next job with `hand`.
    """

    def __init__(
        self, module: str, config: WorkerConfig, on_line: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._on_line, self._text = on_line, b""
        self.failure: Mapping[str, Any] | None = None
        self._progress: object = None
        self._progressed_s = time.monotonic()
        with ExitStack() as stack:
            page = self._path = stack.enter_context(new_page())
            self._page = ProgressPage(page)
            stack.callback(self._page.close)
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                pass_fds=(int(page.name),),
            )
            stack.callback(self._reap)
            self.pidfd = os.pidfd_open(self._process.pid)
            stack.callback(os.close, self.pidfd)
            with suppress(BrokenPipeError):
                # A worker that has ended already is no fault here: `why_ended` will say how.
                self._write(config)
            os.set_blocking(self.stdout.fileno(), False)
            self._resources = stack.pop_all()

    @property
    def stdout(self) -> IO[bytes]:
        """The pipe that the worker prints to."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def _write(self, config: WorkerConfig) -> None:
        assert self._process.stdin is not None
        own = {"page": str(self._path), "daemon": os.getpid()}
        line = json.dumps({**config.to_json(), **own}).encode() + b"\n"
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def hand(self, config: WorkerConfig, on_line: Callable[[Mapping[str, Any]], None]) -> None:
        """Give a worker that waits its next job. Raises OSError if it has ended.

        A line of 64 ranks fits into the pipe, which is empty while it waits: this does not block.
        """
        self._on_line, self.failure = on_line, None
        self._page.clear()
        self._write(config)

    def listen(self, on_line: Callable[[Mapping[str, Any]], None]) -> None:
        """Pass on what it prints to another."""
        self._on_line = on_line

    def read(self) -> bool:
        """Read and pass on what was printed; False at the end of the pipe."""
        data = self.stdout.read()
        self._text += data or b""
        *lines, rest = self._text.split(b"\n")
        self._text = rest[:LINE_BYTES]
        for values in map(_object_of, lines):
            failed = values.get("failed")
            if isinstance(failed, dict):
                self.failure = failed
            self._on_line(values)
        return data != b""

    def report(self) -> dict[str, Any]:
        """The worker's state, progress and memory now."""
        progress, pid = self._page.read(), self._process.pid
        state = state_of(pid)
        return {
            **dataclasses.asdict(progress),
            "state": state,
            "stalled_on": self._stalled_on(state, progress, time.monotonic()),
            "rss_bytes": rss_bytes_of(pid),
        }

    def _stalled_on(self, state: str, progress: object, now_s: float) -> str:
        """ "disk" if the worker has been waiting for a read for STALL_S, else ""."""
        progress = (progress, storage_bytes_read(Path(f"/proc/{self._process.pid}/io")))
        if state != "disk" or progress != self._progress:
            self._progress, self._progressed_s = progress, now_s
        return "disk" if now_s - self._progressed_s >= STALL_S else ""

    @staticmethod
    def why_failed(failure: Mapping[str, Any]) -> dict[str, Any]:
        """The failure that the worker itself reported, as text fields of limited names."""
        words = {name: str(failure.get(name, "")) for name in ("message", "hint", "board", "key")}
        keys = failure.get("unreached")
        return {**words, "failed": True, **({"unreached": keys} if keys else {})}

    def why_ended(self) -> dict[str, Any]:
        """Reason of the process's end, in words; `failed` if it reported one. Waits for the end."""
        self.read()
        code = self._process.wait()
        if self.failure is not None:
            return self.why_failed(self.failure)
        if code < 0:  # not every signal has a name
            return {"message": _SIGNALS.get(-code) or f"it was ended by signal {-code}"}
        return {
            "message": f"it left with code {code}" if code else "the session is over",
            "hint": "",
        }

    @property
    def was_killed(self) -> bool:
        """Whether a kill ended it, and not the worker itself. Waits for its end."""
        return self._process.wait() == -signal.SIGKILL

    def kill(self) -> None:
        """Kill it. A process in a disk read ends only when that returns: `pidfd` tells."""
        self._process.kill()

    def end(self) -> None:
        """Kill it if it still runs, and release its pipes and page. Idempotent."""
        self._resources.close()

    def _reap(self) -> None:
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # it is in a disk read, and will end after us
            self._process.wait(EXIT_S)
        self.stdout.close()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()


def _object_of(line: bytes) -> Mapping[str, Any]:
    """The JSON object of a line; empty if a library printed the line."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
