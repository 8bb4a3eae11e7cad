"""Notifications of the daemons of a group's boards, and what they say of a board that was lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from picoedge.errors import (
    BoardLostError,
    BoardRefusedError,
    BoardSilentError,
    MeshError,
    UnlinkedError,
)
from picoedge.fields import Fields
from picoedge.jobs.boards import refusals
from picoedge.jobs.status import read_work
from picoedge.mesh.transport.frames import HUB
from picoedge.sanitize import one_line

if TYPE_CHECKING:
    from picoedge.jobs.boards import BoardHandle
    from picoedge.jobs.progress_page import Work
    from picoedge.progress import Progress

STOPPED_S = 1.0  # for which a worker may be stopped (SIGSTOP, a frozen cgroup) until it has failed
LAST_WORDS_S = 1.0  # for a daemon to report why its worker ended: at once, where it is not busy
POLL_S = 0.05  # between looks at what daemons have said; a worker takes a second to start


class DaemonReports:
    """Reports of the daemons of a group's boards. `handles` are by rank.

    `unlink(key, others)` is told of a link that failed between boards that are well. `exchanges`:
    whether workers send messages to each other, and not to the hub alone.
    """

    def __init__(
        self,
        handles: Sequence[BoardHandle],
        unlink: Callable[[str, Sequence[str]], None],
        progress: Progress | None,
        *,
        exchanges: bool,
    ) -> None:
        self.ports: dict[str, int] = {}  # of workers that listen, by their boards' keys
        self.is_ready = False  # whether all slices are loaded
        self._handles, self._unlink, self._progress = handles, unlink, progress
        self._exchanges = exchanges
        self._reports: dict[str, tuple[dict[str, Any], float]] = {}  # the last by key, and when
        self._reasons: dict[str, MeshError] = {}  # for which workers ended; by key
        self._accused: dict[str, BoardHandle] = {}  # boards that a worker has lost, by its key
        self._stopped_since: dict[str, float] = {}

    def read(self, handle: BoardHandle) -> None:
        """Read what a board's daemon pushed.

        Raises BoardLostError if the board has failed, BoardRefusedError if that makes no sense.
        """
        with refusals(handle):
            pushed = handle.client.notifications()
        for kind, body in pushed:
            if kind == "job-listens":
                with refusals(handle):
                    port = Fields(body, "its worker").integer("port", 1, (1 << 16) - 1)
                self.ports[handle.key] = port
            elif kind == "job-ended":
                self._reasons[handle.key] = reason = self._end_of(handle, body)
                raise reason
            elif kind == "job-report":
                self._add_report(handle, body)
            elif kind == "job-revoked" and handle is self._handles[HUB]:
                self._check_revoked(body)

    def check(self) -> None:
        """Raises BoardLostError if a board's daemon has ended, or says that its worker has."""
        for handle in self._handles:
            self.read(handle)

    def work_since(self, time_s: float) -> dict[str, Work]:
        """Work done by each worker, by key, if it has reported since `time_s` (monotonic).

        Raises BoardLostError as `read` does.
        """
        self.check()
        recent = {key: report for key, (report, at_s) in self._reports.items() if at_s >= time_s}
        works = {key: read_work(report) for key, report in recent.items()}
        return {key: work for key, work in works.items() if work is not None}

    def _check_revoked(self, body: dict[str, Any]) -> None:
        for handle in self._handles:
            if handle.key == body.get("key"):
                raise lost_board(handle, f"{handle.name} was revoked")

    def _end_of(self, handle: BoardHandle, body: dict[str, Any]) -> MeshError:
        """The error for a worker that has ended.

        BoardRefusedError if the worker reported that it cannot start: it would fail again.
        """
        why, hint = (one_line(str(body.get(name, "")), 500) for name in ("message", "hint"))
        if unreached := self._unreached(handle, body):
            return UnlinkedError(f"{handle.name}: {why}", hint, keys=(handle.key, *unreached))
        if accused := self._accused_by(handle, body):
            self._accused[handle.key] = accused
            return lost_board(handle, f"{handle.name}: {why}", hint)
        if body.get("failed") and not self.is_ready:
            message = f"{handle.name}: {why}"
            return BoardRefusedError(message, hint, board=handle.name, key=handle.key)
        return lost_board(handle, f"{handle.name}: {why}", hint)

    def _accused_by(self, handle: BoardHandle, body: dict[str, Any]) -> BoardHandle | None:
        """The worker that a board's worker says it has lost, if it exchanges messages with it.

        Version 1 sends only a name: the name that this group gave the board.
        """
        if not self._exchanges:
            return None
        said = body.get("key") or body.get("board")
        workers = [other for other in self._handles[1:] if other is not handle]
        return next((other for other in workers if said in (other.key, other.name)), None)

    def _unreached(self, handle: BoardHandle, body: dict[str, Any]) -> list[str]:
        """Keys of other workers that this one cannot reach, as it says, where it is to."""
        said, workers = body.get("unreached"), self._handles[1:]
        if not isinstance(said, list) or not self._exchanges:
            return []
        return [other.key for other in workers if other is not handle and other.key in said]

    def _add_report(self, handle: BoardHandle, report: dict[str, Any]) -> None:
        key, now_s = handle.key, time.monotonic()
        self._reports[key] = report, now_s
        loads = not self.is_ready and report.get("stage") in ("pulling", "loading")
        if loads and self._progress is not None:
            done, total = report.get("done"), report.get("total")
            if isinstance(done, int) and isinstance(total, int) and total:
                self._progress(f"{handle.name}: {report['stage']}", done, total)
        if report.get("state") != "stopped":
            self._stopped_since.pop(key, None)
        elif now_s - self._stopped_since.setdefault(key, now_s) > STOPPED_S:
            raise lost_board(handle, f"{handle.name}: its worker is stopped")

    def explain(self, error: MeshError) -> MeshError:
        """The loss of a board with its daemon's reason and last report; other errors as they are.

        A board that another one says it has lost has failed only if its own daemon says so, or
        nothing; else it was the link between the two, which is not used for a while.
        """
        if not isinstance(error, BoardLostError):
            return error
        reason = self._last_words(error)
        if accused := self._accused.get(reason.key):
            confirmed = self._check(accused)
            if confirmed is None:
                self._unlink(reason.key, [accused.key])
            reason = confirmed or reason
        message = reason.message + self._last_report(reason.key)
        is_silent = type(reason) is BoardLostError and reason.key not in self._reasons
        kind = BoardSilentError if is_silent else type(reason)
        return kind(message, reason.hint, board=reason.board, key=reason.key)

    def _last_report(self, key: str) -> str:
        if key not in self._reports:
            return ""
        report, at_s = self._reports[key]
        stage, state = (str(report.get(name, "?"))[:40] for name in ("stage", "state"))
        return f"; {time.monotonic() - at_s:.1f} s ago it reported: {stage}, {state}"

    def _check(self, handle: BoardHandle) -> BoardLostError | None:
        """The failure of a board that another one accuses; None where it runs as it should."""
        unknown = lost_board(handle, f"{handle.name} is lost")
        reason = self._last_words(unknown)
        if reason is not unknown:
            return reason
        try:
            handle.client.ask_raw("ping", {"bytes": 0}, LAST_WORDS_S)
        except BoardLostError as error:
            return error
        except MeshError:
            pass  # it answers
        report, _ = self._reports.get(handle.key, ({}, 0.0))
        return unknown if report.get("state") in ("stopped", "ended") else None

    def _last_words(self, error: BoardLostError) -> BoardLostError:
        """The error that ended the failed board's worker, as its daemon says; else `error`."""
        handle = self._of(error)
        if handle is None:
            return error
        deadline = time.monotonic() + LAST_WORDS_S
        try:
            if handle.key in self._reasons:  # read before the error was raised
                raise self._reasons[handle.key]
            while time.monotonic() < deadline:
                self.read(handle)
                time.sleep(POLL_S)
        except BoardLostError as reason:
            return reason
        except MeshError:
            pass
        return error

    def _of(self, error: BoardLostError) -> BoardHandle | None:
        return next((handle for handle in self._handles if handle.key == error.key), None)


def lost_board(handle: BoardHandle, why: str, hint: str = "") -> BoardLostError:
    """The error for a board that has failed."""
    return BoardLostError(why, hint, board=handle.name, key=handle.key)
