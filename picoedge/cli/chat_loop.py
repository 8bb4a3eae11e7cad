"""A chat on a console: messages and commands, answers, Ctrl-C, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from picoedge.cli import chat_commands
from picoedge.cli.chat_console import Console
from picoedge.cli.failures import EXIT_INTERRUPTED
from picoedge.cli.output import error_line, one_line
from picoedge.cli.reports import timings
from picoedge.errors import PicoedgeError

if TYPE_CHECKING:
    from picoedge.engine.session import Prompter, Session


@dataclass
class ChatSettings:
    """What `/set` changes, apart from the sampling options, which are the session's."""

    system: str = ""
    n_tokens: int = -1
    stop: list[str] = field(default_factory=list)
    verbose: bool = False


class Chat:
    """The messages of one session on one console. It continues after errors."""

    def __init__(
        self, session: Session, prompter: Prompter, console: Console, settings: ChatSettings
    ) -> None:
        self.session, self.prompter = session, prompter
        self.console, self.settings = console, settings
        self.messages: list[dict[str, str]] = []  # without the system's
        self.interrupted = False  # the last event was Ctrl-C

    def run(self) -> int:
        """Talk until /bye or Ctrl-D (exit code 0) or Ctrl-C twice (130)."""
        self.say(f"{one_line(self.session.describe())} · /? for help")
        while True:
            try:
                message = self.console.read()
                self.interrupted = False
                if not self._handle(message):
                    return 0
            except EOFError:
                self.say("")
                return 0
            except KeyboardInterrupt:
                if self.interrupted:
                    self.say("")
                    return EXIT_INTERRUPTED
                self.interrupted = True
                self.say("\n(Ctrl-C again leaves; so do /bye and Ctrl-D)")
            except PicoedgeError as error:
                self.say(error_line(error.message, error.hint))

    def _handle(self, message: str) -> bool:
        """Handle a message or command; False ends the conversation."""
        if chat_commands.is_command(message):
            return chat_commands.run_command(self, message)
        if message.strip():
            self.ask(message.strip("\n"))
        return True

    def ask(self, message: str) -> None:
        """Send a message and stream the answer; both are kept, unless the answer is empty.

        Of an answer that is stopped, or that an error interrupts, the text so far is kept.
        """
        self.messages.append({"role": "user", "content": message})
        pieces: list[str] = []
        try:
            self._answer(pieces)
        finally:
            answer = "".join(pieces)
            if answer:
                self.messages.append({"role": "assistant", "content": answer})
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
            for line in timings(self.session):
                self.say(f"[{line}]")

    def prompt_messages(self) -> list[dict[str, str]]:
        """The messages for the chat template, the system's first."""
        system = self.settings.system
        return [{"role": "system", "content": system}] * bool(system) + self.messages

    def say(self, line: str) -> None:
        """A line of this program on the console."""
        self.console.write(line + "\n")
