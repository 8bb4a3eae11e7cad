"""A life is lived: events fall on boards, questions are asked, all is written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.life.boards import PICOEDGE, LifeBoards
from bench.life.events import Event
from bench.life.judge import Asked, judge
from bench.life.questions import Conversation
from bench.life.reference import Reference
from bench.life.strikes import strike
from bench.life.terminal import Terminal

N_TOKENS, N_CTX = 16, 1024
OPEN_S, ANSWER_S = 300.0, 300.0
STRENGTH_S, STRENGTH_LOOK_S = 180.0, 2.0
FEW_S = 0.02  # of computing, two ticks: a worker that took part in an answer took more


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
    terminals: list[Terminal] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.talk = Conversation()
        self._event = "start"

    # -- the chat ----------------------------------------------------------------------------------

    @property
    def chat(self) -> Terminal:
        """The chat of now."""
        return self.terminals[-1]

    def open_chat(self) -> None:
        """Type the command again until there is a prompt, as a person would."""
        board = self.boards[0]
        words = [
            *PICOEDGE, "chat", self.pack, "--cluster", "--temperature", "0", "-c", str(N_CTX),
            "-n", str(N_TOKENS), "-t", "1",
        ]  # fmt: skip
        self.talk.clear()
        deadline = time.monotonic() + OPEN_S
        while time.monotonic() < deadline:
            self.boards.revive()
            self.terminals.append(Terminal(board.board, words, board.environment()))
            if self.chat.await_prompt(max(1.0, deadline - time.monotonic())):
                return
            said = self.chat.err.raw[-300:].decode(errors="replace")
            self.fault(f"the chat did not start: {said!r}")
            self.chat.close()
            time.sleep(STRENGTH_LOOK_S)

    def ensure_chat(self) -> None:
        """A chat that runs."""
        if not self.terminals or not self.chat.is_running:
            self.open_chat()

    def clear(self) -> None:
        """Begin a new conversation."""
        self.chat.send("/clear")
        self.chat.answer(ANSWER_S)
        self.talk.clear()

    def fault(self, what: str) -> None:
        """Write down what should not be."""
        self.faults.append(f"{time.monotonic() - self.began:.0f} s, {self._event}: {what}")
        self.tell(f"FAULT {self.faults[-1]}")

    # -- questions ---------------------------------------------------------------------------------

    def ask(self, moment: str, *, calm: bool = False, midway: Callable[[], None] | None = None,
            midway_s: float = 0.0) -> Asked | None:  # fmt: skip
        """Ask the next question; `midway` falls after so many seconds. None: the hub is dead."""
        self.ensure_chat()
        if self.talk.is_long:
            self.clear()
        question = self.talk.next_question()
        expected = self.reference.answer(self.talk.messages, N_TOKENS)
        before = self.boards.computed()
        self.chat.send(question)
        if midway is not None:
            time.sleep(midway_s)
            midway()
        seen = self.chat.answer(ANSWER_S)
        if not seen.is_complete and not self.chat.is_running:
            self.talk.answered(seen.text)
            return None  # whoever asked is gone: asked again in the next chat
        outcome, same = judge(seen.text, expected, seen.error, seen.is_complete, is_cut=False)
        boards = 1 + sum(
            _took_part(*pair) for pair in zip(before, self.boards.computed(), strict=True)
        )
        one = Asked(
            time.monotonic() - self.began, self._event, moment, outcome, same, boards,
            seen.first_s, seen.total_s, calm, seen.text, expected, seen.error,
        )  # fmt: skip
        self.asked.append(one)
        self.tell(
            f"  {moment}: {outcome}{'' if same else ' OTHER TEXT'}, {boards} boards, "
            f"first {seen.first_s or -1:.2f} s, all {seen.total_s:.2f} s {seen.error}"
        )
        if outcome != "whole" or not same:
            self.fault(
                f"asked {question!r}: {outcome}, {seen.text!r}, not {expected!r}; {seen.error}"
            )
        self.talk.answered(seen.text)
        if not seen.is_complete:
            self.chat.close()  # it hangs: a person closes the window
        return one

    def await_strength(self) -> None:
        """Ask until an answer comes over all boards; note how long that took.

        Where it takes too long the chat is left and begun anew, as a person would do: what comes
        next is to befall boards that are well.
        """
        began = time.monotonic()
        while True:
            one = self.ask("strength")
            took = time.monotonic() - began
            if one is not None and one.boards == len(self.boards.all):
                return self.strengths.append((self._event, took))
            if took > STRENGTH_S:
                self.strengths.append((self._event, took))
                self.fault(f"not over all boards within {STRENGTH_S:.0f} s")
                self.chat.leave()
                began = time.monotonic()
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
            self._suffer(event)
            self.await_strength()
            self.ask("calm", calm=True)

    def _suffer(self, event: Event) -> None:
        undo: list[Callable[[], None]] = []

        def fall() -> None:
            undo.append(strike(event, self))

        if event.midway is not None:
            self.ask("during", midway=fall, midway_s=event.midway)
        else:
            fall()
            if event.kind != "idle":
                self.ask("during")
        began = time.monotonic()
        time.sleep(max(0.0, event.seconds - (time.monotonic() - began)))
        for each in undo:
            each()
        self.boards.revive()
        self.ask("after", calm=event.kind == "idle")

    def to_json(self) -> dict[str, Any]:
        """What became of it."""
        return {
            "asked": [one.to_json() for one in self.asked],
            "strengths": self.strengths,
            "faults": self.faults,
        }

    def keep(self, folder: Path) -> None:
        """Copy what was seen and said, for whoever looks for a cause."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, terminal in enumerate(self.terminals):
            (folder / f"chat{number:03}.out").write_bytes(terminal.out.raw)
            (folder / f"chat{number:03}.err").write_bytes(terminal.err.raw)
        for each in self.boards.all:
            if each.log.exists():
                (folder / f"{each.board.name}.log").write_bytes(each.log.read_bytes())
        (folder / "faults").write_text("\n".join(self.faults) + "\n")


def _took_part(before: tuple[int, float], after: tuple[int, float]) -> bool:
    """Whether a worker computed in between."""
    pid, seconds = after
    return bool(pid) and seconds - (before[1] if before[0] == pid else 0.0) >= FEW_S
