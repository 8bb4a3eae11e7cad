"""A chat on a console: messages and commands in, what Ctrl-C means, when it ends."""

from __future__ import annotations

from picoedge.cli import chat_commands
from picoedge.cli.conversation import Conversation
from picoedge.cli.failures import EXIT_INTERRUPTED
from picoedge.cli.output import error_line, one_line
from picoedge.errors import PicoedgeError


class Chat(Conversation):
    """A conversation that takes commands, and goes on after errors."""

    def run(self) -> int:
        """Talk until /bye or Ctrl-D (exit code 0) or Ctrl-C twice (130)."""
        self.say(f"{one_line(self.session.describe())} · /? for help")
        while True:
            try:
                message = self.console.read()
                self.interrupted = False
                if not self._take(message):
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
                self.complain(error)

    def _take(self, message: str) -> bool:
        """One message or command; False where the conversation is to end."""
        if chat_commands.is_command(message):
            return chat_commands.obey(self, message)
        if message.strip():
            self.ask(message.strip("\n"))
        return True

    def complain(self, error: PicoedgeError) -> None:
        """An error that does not end the conversation."""
        self.say(error_line(error.message, error.hint))
