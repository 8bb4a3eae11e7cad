"""A chat on a console: messages and commands until it ends. It continues after errors."""

from __future__ import annotations

from contextlib import suppress

from picoedge.cli.chat_commands import is_command, run_command
from picoedge.cli.chat_console import PROMPT
from picoedge.cli.chat_turns import Chat
from picoedge.cli.failures import EXIT_INTERRUPTED
from picoedge.cli.output import error_line
from picoedge.cli.signals import Terminated
from picoedge.errors import PicoedgeError
from picoedge.sanitize import one_line


def converse(chat: Chat) -> int:
    """Talk until /bye or Ctrl-D (exit code 0) or Ctrl-C twice (130)."""
    adapter = chat.log.conversation.adapter
    beside = f" · adapter {adapter.name}" if adapter else ""
    chat.say(f"{one_line(chat.session.describe() + beside)} · /? for help")
    _recall(chat)
    step = _next_message if chat.log.conversation.unanswered is None else _answer_the_last
    while True:
        try:
            if not step(chat):
                return 0
        except EOFError:
            chat.say("")
            return 0
        except Terminated:
            with suppress(OSError):  # the terminal itself may be gone
                chat.say("")
            raise
        except KeyboardInterrupt:
            if chat.interrupted:
                chat.say("")
                return EXIT_INTERRUPTED
            chat.interrupted = True
            chat.say("\n(Ctrl-C again leaves; so do /bye and Ctrl-D)")
        except PicoedgeError as error:
            chat.say(error_line(error.message, error.hint))
        step = _next_message


def _recall(chat: Chat) -> None:
    """The end of a conversation that goes on: its last turn, or the question that has none."""
    conversation = chat.log.conversation
    if conversation.messages and conversation.unanswered is None:
        question, answer = (message["content"] for message in conversation.messages[-2:])
        chat.say(f"{PROMPT}{question}\n{answer}")
    elif conversation.unanswered is not None:
        chat.say(f"{PROMPT}{conversation.unanswered}")


def _next_message(chat: Chat) -> bool:
    """Read one message and answer it; False where it ends the conversation."""
    message = chat.console.read(chat.session.model.attend)
    chat.interrupted = False
    if is_command(message):
        return run_command(chat, message)
    if message.strip():
        chat.ask(message.strip("\n"))
    return True


def _answer_the_last(chat: Chat) -> bool:
    """Answer a question that a conversation ends with."""
    chat.answer()
    return True
