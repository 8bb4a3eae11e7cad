"""What has been said in a chat, and how a question gets its answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from picoedge.cli.chat_console import Console
from picoedge.cli.output import rates
from picoedge.cli.reports import waiting
from picoedge.errors import PicoedgeError

if TYPE_CHECKING:
    from picoedge.engine.session import Prompter, Session


@dataclass
class ChatSettings:
    """What `/set` changes, beside the sampling options the session holds."""

    system: str = ""
    n_tokens: int = -1
    stop: list[str] = field(default_factory=list)
    verbose: bool = False


class Conversation:
    """The messages of one session on one console."""

    def __init__(
        self, session: Session, prompter: Prompter, console: Console, settings: ChatSettings
    ) -> None:
        self.session, self.prompter = session, prompter
        self.console, self.settings = console, settings
        self.messages: list[dict[str, str]] = []  # without the system's
        self.interrupted = False  # Ctrl-C was the last thing that happened

    def ask(self, message: str) -> None:
        """Send a message and stream the answer; both are kept, unless nothing was answered.

        An answer that is stopped, or that an error breaks off, is kept as far as it came.
        """
        self.messages.append({"role": "user", "content": message})
        pieces: list[str] = []
        try:
            self._answer(pieces)
        finally:
            said = "".join(pieces)
            if said:
                self.messages.append({"role": "assistant", "content": said})
            else:
                self.messages.pop()

    def _answer(self, pieces: list[str]) -> None:
        """Stream one answer; Ctrl-C ends it, a second Ctrl-C raises KeyboardInterrupt."""
        session, settings = self.session, self.settings
        limit = None if settings.n_tokens < 0 else settings.n_tokens
        with self.console.interrupts(self._on_interrupt):
            prompt = self.prompter.chat(self.prompt_messages())
            try:
                for piece in session.generate(prompt, max_tokens=limit, stop=settings.stop):
                    pieces.append(piece)
                    self.console.write(piece)
            except PicoedgeError:
                if pieces:
                    self.say("")
                raise
        self.say("")
        self._tell_end()

    def _on_interrupt(self) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.session.cancel()

    def _tell_end(self) -> None:
        stats = self.session.stats
        if stats.context_full:
            self.say(
                f"[the context of {self.session.model.n_ctx} tokens is full: /clear empties it]"
            )
        elif stats.finish_reason == "length":
            self.say(
                f"[stopped after {len(stats.tokens)} tokens: /set n {self.settings.n_tokens * 2}]"
            )
        if self.settings.verbose:
            self.say(f"[{rates(stats)}]")
            line = waiting(stats) if self.session.model.memory_plan is not None else ""
            if line:
                self.say(f"[{line}]")

    def prompt_messages(self) -> list[dict[str, str]]:
        """The conversation as the template takes it, the system's message first."""
        system = self.settings.system
        return [{"role": "system", "content": system}] * bool(system) + self.messages

    def say(self, line: str) -> None:
        """A line of ours on the console."""
        self.console.write(line + "\n")
