"""A life is lived: events fall on boards, questions are asked, all is written down."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.life.boards import LifeBoards
from bench.life.desk.beside import OTHER, Beside, Single, Wanting
from bench.life.desk.questions import SINGLE
from bench.life.desk.session import N_TOKENS, Heard, Session, question_of
from bench.life.desk.transcript import ERROR
from bench.life.faults.events import CHAT, Event
from bench.life.faults.strikes import nothing, strike
from bench.life.verdict.holding import Holding
from bench.life.verdict.judge import CUT, FAILED, REFUSED, Asked, judge
from bench.life.verdict.neighbours import Neighbours
from bench.life.verdict.reference import Reference
from bench.life.verdict.strength import Strength

STRENGTH_S, STRENGTH_LOOK_S, MOST_FAILED = 120.0, 1.0, 3
MOST_CHATS = 3  # that are begun until boards are no longer waited for
FEW_S = 0.02  # of computing, two ticks: a worker that took part in an answer took more
QUIET_S = 15.0  # that a calm question waits for other lives' questions to end
CALM_QUESTIONS = 3  # after each event, once an answer has come over all boards
ERROR_CHARS = 500  # of what a command says at its end
_LINE_ENDS = re.compile("\r\n?")
SECOND = Single(OTHER, SINGLE[0], ("chat",), queues=True, after_s=0.0)


@dataclass
class Life:
    """One chat and what befalls it; `tell` hears each step."""

    boards: LifeBoards
    reference: Reference
    holding: Holding
    pack: str
    tell: Callable[[str], None]
    wanting: Wanting
    neighbours: Neighbours
    seed: int
    asked: list[Asked] = field(default_factory=list)
    strengths: list[tuple[str, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    others: list[tuple[str, bytes]] = field(default_factory=list)  # what other commands said

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.session = Session(
            self.boards[CHAT], self.reference, self.pack, self.fault, len(self.boards.all)
        )
        self._event, self._strength = "start", Strength(self.began)

    def fault(self, what: str) -> None:
        """Write down what should not be."""
        self.faults.append(f"{time.monotonic() - self.began:.0f} s, {self._event}: {what}")
        self.tell(f"FAULT {self.faults[-1]}")

    # -- questions ---------------------------------------------------------------------------------

    def ensure_chat(self) -> None:
        """A chat that runs: begun, or gone on with where it has died."""
        if not self.session.is_open:
            before = self.boards.computed()
            heard = self.session.open()
            if heard is not None:
                self._add("continued", heard, before)

    def ask(self, moment: str, *, calm: bool = False, midway: Callable[[], None] | None = None,
            midway_s: float = 0.0) -> Asked | None:  # fmt: skip
        """Ask the next question; `midway` falls after so many seconds. None: the hub is dead.

        It is not `calm` if other lives on this machine asked meanwhile.
        """
        if calm:
            self.neighbours.await_quiet(self.seed, QUIET_S)
        with self.neighbours.busy(self.seed) as is_alone:
            self.ensure_chat()
            before = self.boards.computed()
            heard = self.session.ask(midway, midway_s)
            calm = calm and is_alone()
        return None if heard is None else self._add(moment, heard, before, calm)

    def _add(
        self, moment: str, heard: Heard, before: list[tuple[int, float]], calm: bool = False
    ) -> Asked:
        seen, after = heard.shown, self.boards.computed()
        boards = 1 + sum(_took_part(*pair) for pair in zip(before, after, strict=True))
        one = Asked(
            time.monotonic() - self.began, self._event, moment, heard.outcome, heard.same, boards,
            seen.first_s, seen.total_s, calm, seen.text, heard.expected, seen.error,
            self._is_held(heard.outcome, CHAT, self.boards.reach.of(CHAT)),
        )  # fmt: skip
        now = time.monotonic()
        self._strength.answered(now - seen.total_s, now, by_all=boards == len(self.boards.all))
        self._note(one, heard.question)
        return one

    def _is_held(self, outcome: str, hub: int, boards: Collection[int]) -> bool:
        """Whether a plan over these boards, as the network lets them through now, has room."""
        return outcome != REFUSED or self.holding.is_held_by(boards, hub)

    def _note(self, one: Asked, question: str) -> None:
        self.asked.append(one)
        first = "" if one.first_s is None else f"first {one.first_s:.2f} s, "
        self.tell(
            f"  {one.moment}: {one.outcome}{'' if one.same else ' OTHER TEXT'}, {one.boards} boards"
            f", {first}all {one.total_s:.2f} s {one.error}"
        )
        if not (one.is_good or one.outcome == CUT) or not one.same:
            wrong = f"{one.text!r}, not {one.expected!r}"
            self.fault(f"{question!r}: {one.outcome}, {wrong}; {one.error}")

    def await_strength(self) -> None:
        """Ask until an answer comes over all boards; note how long that took since all was well.

        Where it takes too long, or answers fail again and again, the chat is left and begun anew,
        as a person would do: what comes next is to befall boards that are well.
        """
        for _ in range(MOST_CHATS):
            if self._ask_until_strong():
                break
            self._leave()
        self._strength.answered(float("inf"), time.monotonic(), by_all=True)
        self.strengths.append((self._event, self._strength.took_s or 0.0))

    def _ask_until_strong(self) -> bool:
        """In the chat of now; whether an answer came over all boards."""
        began, failed, took = time.monotonic(), 0, 0.0
        while self._strength.took_s is None:
            if took > STRENGTH_S or failed == MOST_FAILED:
                self.fault(f"not over all boards after {took:.0f} s, {failed} answers failed")
                return False
            one = self.ask("strength")
            failed += one is not None and one.outcome in (FAILED, REFUSED)
            took = time.monotonic() - began
            time.sleep(STRENGTH_LOOK_S)
        return True

    # -- events ------------------------------------------------------------------------------------

    def live(self, events: Iterator[Event], until: float, spared: float) -> None:
        """Let it happen until then; from `spared` on nothing ends the hub (both monotonic)."""
        self._well()
        self.await_strength()
        for event in events:
            now = time.monotonic()
            if now >= until:
                return
            if event.ends_hub and now >= spared:
                continue
            self._event = str(event)
            self.tell(f"{now - self.began:.0f} s: {event}")
            single = self._wanted(event, may_queue=now < spared)
            beside = None if single is None else self._begin(single)
            try:
                self._suffer(event)
            finally:
                if beside is not None:
                    self._end_beside(beside, event)
            self.await_strength()
            for _ in range(CALM_QUESTIONS):
                self.ask("calm", calm=True)

    def _suffer(self, event: Event) -> None:
        """What lasts ends by the clock, also in the middle of an answer."""
        healing: list[threading.Timer] = []

        def fall() -> None:
            undo = strike(event, self)
            if undo is not nothing:
                healing.append(threading.Timer(event.seconds, partial(self._heal, undo)))
                healing[-1].start()
            self._well()

        try:
            self._ask_while(event, fall)
        finally:
            for timer in healing:
                timer.join()
        self.ask("after", calm=event.kind == "idle")

    def _heal(self, undo: Callable[[], None]) -> None:
        undo()
        self._well()

    def _well(self) -> None:
        """From now on all is well."""
        self._strength.well(time.monotonic())

    def _ask_while(self, event: Event, fall: Callable[[], None]) -> None:
        if event.midway is not None:
            self.ask("during", midway=fall, midway_s=event.midway)
            return
        fall()
        if event.kind == "idle":
            time.sleep(event.seconds)
            self._well()
        elif not (event.kind == "reboot" and event.board == CHAT):  # whose person waits for it
            self.ask("during")

    def _wanted(self, event: Event, *, may_queue: bool) -> Single | None:
        """Single answers beside this event; an idle desk stays idle."""
        if event.kind == "second":
            return SECOND
        single = self.wanting.next(may_queue)
        return None if event.kind == "idle" else single

    def _leave(self) -> None:
        if self.session.is_open:
            self.session.leave()

    def _begin(self, single: Single) -> Beside:
        busy = partial(self.neighbours.busy, self.seed)
        return Beside(single, self.boards, self.pack, busy)

    def _end_beside(self, beside: Beside, event: Event) -> None:
        """Wait for a single answer; the chat is left if that is what it waits for."""
        beside.end(self._leave)
        self._well()
        single, code = beside.single, beside.code
        self.others.append((f"single{len(self.others):03}", (beside.out + beside.err).encode()))
        if code is None or (beside.was_killed and event.ends_all_on(single.board)):
            return self.tell(f"  single: {single}: ended with its board")
        expected = self.reference.answer(question_of(single.question), N_TOKENS)
        expected = _LINE_ENDS.sub("\n", expected)  # as a pipe that is read as text has them
        said = beside.err.strip()[-ERROR_CHARS:]
        error = "" if code == 0 else f"exit code {code}: {said}"
        error = error[error.find(ERROR) :].splitlines()[0] if ERROR in error else error
        text = beside.out.removesuffix("\n")
        outcome, same = judge(text, expected, error, is_complete=True, is_cut=False)
        reached = self.boards.reach.of(single.board) if single.queues else {single.board}
        one = Asked(
            time.monotonic() - self.began, self._event, f"single, {single}", outcome, same, 0, None,
            beside.total_s, False, text, expected, error,
            self._is_held(outcome, single.board, reached),
        )  # fmt: skip
        self._note(one, single.question)

    # -- afterwards --------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The results of this life."""
        return {
            "asked": [one.to_json() for one in self.asked],
            "strengths": self.strengths,
            "faults": self.faults,
        }

    def said(self) -> list[tuple[str, bytes]]:
        """(which, text) of all terminals and logs."""
        found: list[tuple[str, bytes]] = []
        for number, terminal in enumerate(self.session.terminals):
            found.append((f"chat{number:03}.out", terminal.out.raw))
            found.append((f"chat{number:03}.err", terminal.err.raw))
        logs = [each.log for each in self.boards.all if each.log.exists()]
        return found + [(log.name, log.read_bytes()) for log in logs] + self.others

    def keep(self, folder: Path) -> None:
        """Copy logs and transcripts, for a search of causes."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.said():
            (folder / name).write_bytes(text)
        (folder / "faults").write_text("\n".join(self.faults) + "\n")


def _took_part(before: tuple[int, float], after: tuple[int, float]) -> bool:
    """Whether a worker computed in between."""
    pid, seconds = after
    return bool(pid) and seconds - (before[1] if before[0] == pid else 0.0) >= FEW_S
