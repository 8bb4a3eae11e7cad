"""A life is lived: events fall on boards, questions are asked, all is written down."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.life.boards import PICOEDGE, LifeBoards
from bench.life.desk.session import ANSWER_S, N_TOKENS, OPTIONS, Heard, Session, question_of
from bench.life.faults.events import CHAT, Event
from bench.life.faults.strikes import nothing, strike
from bench.life.verdict.judge import CUT, FAILED, WHOLE, Asked, judge
from bench.life.verdict.reference import Reference

STRENGTH_S, STRENGTH_LOOK_S, MOST_FAILED = 120.0, 1.0, 3
QUEUED_S = 60.0  # for the second hub to say that it waits, or to answer
FEW_S = 0.02  # of computing, two ticks: a worker that took part in an answer took more
SECOND_QUESTION = "What is the largest planet?"


@dataclass
class Life:
    """One chat and what befalls it; `tell` hears each step."""

    boards: LifeBoards
    reference: Reference
    pack: str
    tell: Callable[[str], None]
    asked: list[Asked] = field(default_factory=list)
    strengths: list[tuple[str, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    others: list[tuple[str, bytes]] = field(default_factory=list)  # what other commands said

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.session = Session(self.boards[CHAT], self.reference, self.pack, self.fault)
        self._event = "start"

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
        """Ask the next question; `midway` falls after so many seconds. None: the hub is dead."""
        self.ensure_chat()
        before = self.boards.computed()
        heard = self.session.ask(midway, midway_s)
        return None if heard is None else self._add(moment, heard, before, calm)

    def _add(
        self, moment: str, heard: Heard, before: list[tuple[int, float]], calm: bool = False
    ) -> Asked:
        seen, after = heard.shown, self.boards.computed()
        boards = 1 + sum(_took_part(*pair) for pair in zip(before, after, strict=True))
        one = Asked(
            time.monotonic() - self.began, self._event, moment, heard.outcome, heard.same, boards,
            seen.first_s, seen.total_s, calm, seen.text, heard.expected, seen.error,
        )  # fmt: skip
        self._note(one, heard.question)
        return one

    def _note(self, one: Asked, question: str) -> None:
        self.asked.append(one)
        first = "" if one.first_s is None else f"first {one.first_s:.2f} s, "
        self.tell(
            f"  {one.moment}: {one.outcome}{'' if one.same else ' OTHER TEXT'}, {one.boards} boards"
            f", {first}all {one.total_s:.2f} s {one.error}"
        )
        if one.outcome not in (WHOLE, CUT) or not one.same:
            wrong = f"{one.text!r}, not {one.expected!r}"
            self.fault(f"{question!r}: {one.outcome}, {wrong}; {one.error}")

    def await_strength(self) -> None:
        """Ask until an answer comes over all boards; note how long that took.

        Where it takes too long, or answers fail again and again, the chat is left and begun anew,
        as a person would do: what comes next is to befall boards that are well.
        """
        began, failed = time.monotonic(), 0
        while True:
            one = self.ask("strength")
            took = time.monotonic() - began
            if one is not None and one.boards == len(self.boards.all):
                return self.strengths.append((self._event, took))
            failed += one is not None and one.outcome == FAILED
            if took > STRENGTH_S or failed == MOST_FAILED:
                self.strengths.append((self._event, max(took, STRENGTH_S)))
                self.fault(f"not over all boards after {took:.0f} s, {failed} answers failed")
                self.session.leave()
                began, failed = time.monotonic(), 0
            time.sleep(STRENGTH_LOOK_S)

    # -- events ------------------------------------------------------------------------------------

    def live(self, events: Iterator[Event], until: float) -> None:
        """Let it happen until then (monotonic)."""
        self.await_strength()
        for event in events:
            if time.monotonic() >= until:
                return
            self._event = str(event)
            self.tell(f"{time.monotonic() - self.began:.0f} s: {event}")
            if event.kind == "second":
                self._second()
            else:
                self._suffer(event)
            self.await_strength()
            self.ask("calm", calm=True)

    def _suffer(self, event: Event) -> None:
        """What lasts ends by the clock, also in the middle of an answer."""
        healing: list[threading.Timer] = []

        def fall() -> None:
            undo = strike(event, self)
            if undo is not nothing:
                healing.append(threading.Timer(event.seconds, undo))
                healing[-1].start()

        try:
            self._ask_while(event, fall)
        finally:
            for timer in healing:
                timer.join()
        self.ask("after", calm=event.kind == "idle")

    def _ask_while(self, event: Event, fall: Callable[[], None]) -> None:
        if event.midway is not None:
            self.ask("during", midway=fall, midway_s=event.midway)
            return
        fall()
        if event.kind == "idle":
            time.sleep(event.seconds)
        elif not (event.kind == "reboot" and event.board == CHAT):  # whose person waits for it
            self.ask("during")

    def _second(self) -> None:
        """Ask from another board; the answer waits until the chat is left."""
        board = self.boards[1]
        words = ["chat", self.pack, "--cluster", *OPTIONS, "-p", SECOND_QUESTION]
        asked_s = time.monotonic()
        second = board.board.start(
            [*PICOEDGE, *words], env=board.environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        with suppress(subprocess.TimeoutExpired):
            second.wait(5.0)
        self.ask("during")
        if second.poll() is None:
            self.session.leave()
        try:
            out, err = second.communicate(timeout=ANSWER_S)
        except subprocess.TimeoutExpired:
            second.kill()
            out, err = second.communicate()
        self.others.append((f"second{len(self.others):03}", (out + err).encode()))
        expected = self.reference.answer(question_of(SECOND_QUESTION), N_TOKENS)
        text, code = out.removesuffix("\n"), second.returncode
        error = "" if code == 0 else f"exit code {code}: {err[-300:]}"
        outcome, same = judge(text, expected, error, code == 0, is_cut=False)
        now = time.monotonic()
        self._note(
            Asked(
                now - self.began, self._event, "second", outcome, same, 0, None, now - asked_s,
                False, text, expected, error,
            ),
            SECOND_QUESTION,
        )  # fmt: skip

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
