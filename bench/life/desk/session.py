"""The chat that goes through a life: opened, asked, interrupted, and gone on with when it dies."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from bench.life.boards import PICOEDGE, LifeBoard
from bench.life.desk.questions import Conversation, Message
from bench.life.desk.terminal import Terminal
from bench.life.desk.transcript import Shown
from bench.life.verdict.judge import judge
from bench.life.verdict.reference import Reference
from picoedge.chats.chat_folder import ChatFolder

N_TOKENS, N_CTX = 16, 1024
OPEN_S, ANSWER_S, RETRY_S = 300.0, 300.0, 2.0
MOST_TRIES = 20
OPTIONS = ("--temperature", "0", "-c", str(N_CTX), "-n", str(N_TOKENS), "-t", "1")


@dataclass(frozen=True)
class Heard:
    """A question, what it should bring, and what it brought."""

    question: str
    expected: str
    shown: Shown
    outcome: str
    same: bool


class Session:
    """A person at one board's terminal. `fault` hears what should not be.

    `boards`: how many its chats are over while all are there; 0: as the plan finds.
    """

    def __init__(
        self,
        board: LifeBoard,
        reference: Reference,
        pack: str,
        fault: Callable[[str], None],
        boards: int = 0,
    ) -> None:
        self._board, self._reference, self._pack, self._boards = board, reference, pack, boards
        self._fault = fault
        self.talk = Conversation()
        self.terminals: list[Terminal] = []
        self._interrupted = False

    @property
    def chat(self) -> Terminal:
        """The terminal of now."""
        return self.terminals[-1]

    @property
    def is_open(self) -> bool:
        """Whether a chat runs to be asked."""
        return bool(self.terminals) and self.chat.is_running

    @property
    def is_talking(self) -> bool:
        """Whether the chat of now has asked for a message."""
        return self.is_open and self.chat.has_prompt

    def open(self, tries: int = MOST_TRIES) -> Heard | None:
        """Type the command until there is a prompt, as a person would.

        What was asked last and never answered is answered at once: that is returned.
        """
        waiting = self._recall()
        deadline = time.monotonic() + OPEN_S
        while time.monotonic() < deadline and tries > 0:
            tries -= 1
            goes_on = ["--continue"] * bool(self.talk.messages)
            over = ["--cluster", *self._over_all()]
            words = [*PICOEDGE, "chat", self._pack, *over, *OPTIONS, *goes_on]
            self.terminals.append(
                Terminal(self._board.board, words, self._board.environment(), waiting or "")
            )
            if self.chat.await_prompt(deadline):
                return self._continued(waiting) if waiting else None
            said = self.chat.err.raw[-300:].decode(errors="replace")
            if tries:
                self._fault(f"the chat did not start: {said!r}")
            self.chat.close()
            time.sleep(RETRY_S)
        return None

    def _over_all(self) -> list[str]:
        """Ask for all boards, if all are there: on a busy machine a plan may do without one."""
        with suppress(subprocess.TimeoutExpired):
            if self._boards and self._board.type("ps").stdout.count(" alive ") == self._boards:
                return ["--boards", str(self._boards)]
        return []

    def _recall(self) -> str | None:
        """Compare what was kept with what was said; the question that waits for its answer."""
        folder = ChatFolder(self._board.board.folder / "state" / "picoedge" / "chats")
        numbers = folder.numbers()
        if not self.talk.messages or not numbers:
            return None
        kept = folder.read(numbers[-1])
        lost = self.talk.differs(kept.messages)
        if lost:
            self._fault(f"the conversation is not what was said: {lost}")
        self.talk.messages = [dict(message) for message in kept.messages]
        if kept.unanswered is not None:
            self.talk.messages.append({"role": "user", "content": kept.unanswered})
        return kept.unanswered

    def _continued(self, question: str) -> Heard:
        expected = self._reference.answer(self.talk.messages, N_TOKENS)
        return self._judged(question, expected, self.chat.first_answer())

    def ask(self, midway: Callable[[], None] | None = None, midway_s: float = 0.0) -> Heard | None:
        """Ask the next question; `midway` falls after so many seconds. None: the chat has died."""
        if self.talk.is_long:
            self.clear()
        question = self.talk.next_question()
        expected = self._reference.answer(self.talk.messages, N_TOKENS)
        self._interrupted = False
        self.chat.send(question)
        if midway is not None:
            time.sleep(midway_s)
            midway()
        seen = self.chat.answer(ANSWER_S)
        if not seen.is_complete and not self.chat.is_running:
            return None
        return self._judged(question, expected, seen)

    def _judged(self, question: str, expected: str, seen: Shown) -> Heard:
        if self._interrupted:
            seen = dataclasses.replace(seen, text=seen.text.replace("^C", "", 1))
        outcome, same = judge(
            seen.text, expected, seen.error, seen.is_complete, is_cut=self._interrupted
        )
        self.talk.answered(seen.text)
        if not seen.is_complete:
            self.chat.close()  # it hangs: a person closes the window
        return Heard(question, expected, seen, outcome, same)

    def clear(self) -> None:
        """Begin a new conversation."""
        self.chat.send("/clear")
        self.chat.answer(ANSWER_S)
        self.talk.clear()

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._interrupted = True
        self.chat.interrupt()

    def interrupt_idle(self) -> None:
        """Ctrl-C at the prompt; a person types on when the next prompt is there."""
        since = len(self.chat.out.raw)
        self.chat.interrupt()
        if not self.chat.await_prompt(time.monotonic() + ANSWER_S, since):
            self._fault("no prompt after Ctrl-C")

    def leave(self) -> None:
        """/bye, to begin again."""
        code = self.chat.leave()
        if code != 0:
            self._fault(f"the chat ended with {code} after /bye")

    def close(self) -> None:
        """Let go of all terminals."""
        for terminal in self.terminals:
            terminal.close()


def question_of(message: str) -> list[Message]:
    """A conversation of one question."""
    return [{"role": "user", "content": message}]
