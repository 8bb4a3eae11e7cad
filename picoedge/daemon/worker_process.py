"""A worker process, as the daemon sees it: started, listened to, watched, ended."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import IO, Any

from picoedge.host.worker_watch import rss_bytes_of, state_of
from picoedge.jobs.progress_page import ProgressPage, new_page
from picoedge.jobs.spec import Order

LINE_BYTES = 64 << 10
LEAVE_S = 2.0
_SIGNALS: dict[int, str] = {
    signal.SIGKILL: "killed: by hand, or by the kernel for want of memory",
    signal.SIGTERM: "terminated",
    signal.SIGSEGV: "crashed",
    signal.SIGBUS: "a file of its weights can no longer be read",
    signal.SIGILL: "this processor lacks an instruction its kernels use",
}


class RunningWorker:
    """Started by the constructor. `heard` is given each line it says.

    `stdout` and `pidfd` are for a loop to wait on: call `read` where the first is readable, and
    `ended` where the second is.
    """

    def __init__(self, order: Order, heard: Callable[[Mapping[str, Any]], None]) -> None:
        self._heard, self._text = heard, b""
        self.failure: Mapping[str, Any] | None = None
        with ExitStack() as stack:
            page = stack.enter_context(new_page())
            self._page = ProgressPage(page)
            stack.callback(self._page.close)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "picoedge.cluster.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                pass_fds=(int(page.name),),
            )
            stack.callback(self._reap)
            self.pidfd = os.pidfd_open(self._process.pid)
            stack.callback(os.close, self.pidfd)
            self._give(dataclasses.replace(order, page=page))
            os.set_blocking(self.stdout.fileno(), False)
            self._left = stack.pop_all()

    def _give(self, order: Order) -> None:
        assert self._process.stdin is not None
        try:
            with self._process.stdin as stdin:
                stdin.write(json.dumps(order.to_json()).encode() + b"\n")
        except BrokenPipeError:
            pass  # it has ended already: `ended` will say how

    @property
    def stdout(self) -> IO[bytes]:
        """What it says."""
        assert self._process.stdout is not None
        return self._process.stdout

    def read(self) -> bool:
        """Take in what it said; False where it will say nothing more."""
        more = self.stdout.read()
        self._text += more or b""
        *lines, rest = self._text.split(b"\n")
        self._text = rest[:LINE_BYTES]
        for values in map(_said, lines):
            failed = values.get("failed")
            if isinstance(failed, dict):
                self.failure = failed
            self._heard(values)
        return more != b""

    def report(self) -> dict[str, Any]:
        """How it is, now."""
        said, pid = self._page.read(), self._process.pid
        return {
            "state": state_of(pid),
            "stage": said.stage,
            "tokens": said.tokens,
            "passes": said.passes,
            "done": said.done,
            "total": said.total,
            "rss_bytes": rss_bytes_of(pid),
            "work": dataclasses.asdict(said.work),
        }

    @staticmethod
    def why_failed(failure: Mapping[str, Any]) -> dict[str, Any]:
        """What it said itself of its failure."""
        words = {name: str(failure.get(name, "")) for name in ("message", "hint", "board")}
        return {**words, "failed": True}

    def why_ended(self) -> dict[str, Any]:
        """What ended it, in words; `failed` where it said so itself. To be asked once it has."""
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

    def kill(self) -> None:
        """It ends at once, or when the disk that it waits for answers: `pidfd` tells."""
        self._process.kill()

    def end(self) -> None:
        """Kill it if it still runs, and let go of all it had. Idempotent."""
        self._left.close()

    def _reap(self) -> None:
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # it is at its disk, and will end after us
            self._process.wait(LEAVE_S)
        self.stdout.close()


def _said(line: bytes) -> Mapping[str, Any]:
    """A line of the worker's; nothing where some library has printed it."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
