"""A conversation, turn by turn: what is kept, what Ctrl-C means, when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from picoedge.cli import chat_commands
from picoedge.cli.chat_console import Console
from picoedge.cli.failures import EXIT_INTERRUPTED
from picoedge.cli.output import rates
from picoedge.errors import PicoedgeError

if TYPE_CHECKING:
    from picoedge.engine.session import Session


@dataclass
class ChatSettings:
    """What `/set` changes, beside the sampling options the session holds."""

    system: str = ""
    n_tokens: int = -1
    stop: list[str] = field(default_factory=list)
    verbose: bool = False


class Chat:
    """The conversation of one session on one console."""

    def __init__(self, session: Session, console: Console, settings: ChatSettings) -> None:
        self.session, self.console, self.settings = session, console, settings
        self.messages: list[dict[str, str]] = []  # without the system's
        self._interrupted = False  # Ctrl-C was the last thing that happened

    def run(self) -> int:
        """Talk until /bye or Ctrl-D (exit code 0) or Ctrl-C twice (130)."""
        self.say(f"{self.session.describe()} · /? for help")
        while True:
            try:
                message = self.console.read()
                self._interrupted = False
                if not self._take(message):
                    return 0
            except EOFError:
                self.say("")
                return 0
            except KeyboardInterrupt:
                if self._interrupted:
                    self.say("")
                    return EXIT_INTERRUPTED
                self._interrupted = True
                self.say("\n(Ctrl-C again leaves; so do /bye and Ctrl-D)")
            except PicoedgeError as error:
                self.complain(error)

    def _take(self, message: str) -> bool:
        """One message or command; False where the conversation is to end."""
        if chat_commands.is_command(message):
            return chat_commands.obey(self, message)
        if message.strip():
            self.ask(message.strip("\n"))
        return True

    def ask(self, message: str) -> None:
        """Send a message and stream the answer; both are kept, unless nothing was answered."""
        self.messages.append({"role": "user", "content": message})
        said = ""
        try:
            said = self._answer()
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": said})
            else:
                self.messages.pop()

    def _answer(self) -> str:
        """Stream one answer; Ctrl-C ends it, a second Ctrl-C raises KeyboardInterrupt."""
        session, settings = self.session, self.settings
        limit = None if settings.n_tokens < 0 else settings.n_tokens
        pieces: list[str] = []
        with self.console.interrupts(self._on_interrupt):
            ids = session.chat_ids(self.prompt_messages())
            for piece in session.generate(ids, max_tokens=limit, stop=settings.stop):
                pieces.append(piece)
                self.console.write(piece)
        self.say("")
        self._tell_end()
        return "".join(pieces)

    def _on_interrupt(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
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

    def prompt_messages(self) -> list[dict[str, str]]:
        """The conversation as the template takes it, the system's message first."""
        system = self.settings.system
        return [{"role": "system", "content": system}] * bool(system) + self.messages

    def say(self, line: str) -> None:
        """A line of ours on the console."""
        self.console.write(line + "\n")

    def complain(self, error: PicoedgeError) -> None:
        """An error that does not end the conversation."""
        self.say(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
