"""Answers the programs of this board that ask about its memory: see `jobs.kept_memory`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from picoedge.daemon.workers import untaken_bytes

if TYPE_CHECKING:
    from picoedge.daemon.memory.board_memory import BoardMemory
    from picoedge.daemon.memory.hub_slice import Answer, HubSlice
    from picoedge.daemon.workers import Reservation, Workers


class MemoryRequests:
    """Answers `free` and `hold`, and has `hub_slice` answer `keep` and `take`.

    `holder()` is the reservation that has the board, and `is_own(reservation)` whether it is of a
    session of this board, whose slice is kept where this board `keeps` any. `end_kept()` ends the
    kept slice; `kept_ended` is to be called once its memory is free.
    """

    def __init__(
        self,
        memory: BoardMemory,
        hub_slice: HubSlice,
        workers: Workers,
        holder: Callable[[], Reservation | None],
        is_own: Callable[[Reservation], bool],
        end_kept: Callable[[], None],
        *,
        keeps: bool,
    ) -> None:
        self._memory, self._hub_slice, self._workers = memory, hub_slice, workers
        self._holder, self._is_own, self._end_kept = holder, is_own, end_kept
        self._keeps = keeps
        self._freed: list[Answer] = []  # to those that wait for the kept slice to end

    def on_request(self, body: Mapping[str, Any], fd: int | None, answer: Answer) -> None:
        """See `hub_slice.LocalHandler`."""
        do = body.get("do")
        is_free = do == "free" and self._memory.kept_bytes > 0
        if fd is not None and (is_free or do == "hold"):
            os.close(fd)  # neither comes with a file
        if is_free:
            self._freed.append(answer)
            return self._end_kept()
        if do == "hold":
            return answer(True, **self._hold(body))
        holder = self._holder()
        is_own = self._keeps and holder is not None and self._is_own(holder)
        self._hub_slice.on_request(body, fd, answer, is_own=is_own)

    def _hold(self, body: Mapping[str, Any]) -> dict[str, int | None]:
        """Note what a program of this board takes; the answer: what others are still to take."""
        pid, nbytes, holder = int(body["pid"]), body.get("bytes"), self._holder()
        held = nbytes if type(nbytes) is int else 0
        session = body.get("session")
        if session and holder and self._is_own(holder) and holder.session == session:
            holder.hub_pid, holder.planned_bytes = pid, held
            return {}
        self._memory.hold(pid, held)
        theirs, most = untaken_bytes(holder, self._memory.now_s)
        others = self._workers.kept_untaken_bytes + self._memory.untaken_bytes(pid)
        return {"leave": None if theirs is None else theirs + others, "most": most + others}

    def kept_ended(self) -> None:
        """Answer those that have waited for it."""
        freed, self._freed = self._freed, []
        for answer in freed:
            answer(True)
