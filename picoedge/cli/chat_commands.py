"""The slash commands of a chat."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from picoedge.chats.conversation import Message, whole_turns
from picoedge.cli.chat_turns import VARIABLE, Chat
from picoedge.cli.failures import storage_error
from picoedge.cli.options import parse_variable
from picoedge.errors import UsageError
from picoedge.fields import check_values
from picoedge.files import replace_file
from picoedge.sanitize import one_line
from picoedge.suggest import did_you_mean

HELP = '''\
/?                 this list
/bye               leave (also Ctrl-D); picoedge chat --continue goes on
/clear             begin a new conversation; picoedge chats lists the old ones
/regen             answer the last message again
/set NAME VALUE    temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed,
                   n (tokens of an answer), stop TEXT, system TEXT
/set think off     no thinking before an answer, where the model has a switch (on: again)
/set var NAME=VAL  a variable of the model's chat template
/set chat-template NAME or FILE
/set verbose       show rates after each answer (/set quiet: no longer)
/show              the settings and what the conversation holds
/save FILE         write the conversation to a file
/load FILE         go on with a conversation from a file
"""                begin and end a message of several lines
Ctrl-C             stop the answer; twice: leave'''

MAX_FILE_BYTES = 2 << 20  # more than any context takes, and kept as one record


def is_command(message: str) -> bool:
    """Whether a message is a command: one of ours, or alone on its line and much like one.

    Others are for the model: `/no_think Why?`, or a path such as `/etc/hosts`.
    """
    word, _, rest = message.strip().partition(" ")
    if not message.startswith("/") or "\n" in message:
        return False
    return word in WORDS or (not rest and bool(did_you_mean(word, WORDS)))


def run_command(chat: Chat, message: str) -> bool:
    """Run a command; False ends the conversation. Raises PicoedgeError."""
    word, _, rest = message.strip().partition(" ")
    if word in LEAVING:
        return False
    action = COMMANDS.get(word)
    if action is None:
        raise UsageError(f"no such command: {word}", did_you_mean(word, WORDS))
    action(chat, rest.strip())
    return True


def _help(chat: Chat, rest: str) -> None:
    chat.say(HELP)


def _clear(chat: Chat, rest: str) -> None:
    """`/clear`: the settings stay, and so does the file of what was said."""
    chat.log.clear()
    chat.session.forget()
    chat.say("the conversation is empty")


def _regenerate(chat: Chat, rest: str) -> None:
    """`/regen`: answer the last message again, with the sampler's next random choices."""
    if chat.log.conversation.question is None and not chat.messages:
        raise UsageError("nothing has been asked yet", "write something")
    chat.log.add("regenerate")
    chat.answer()


def _show(chat: Chat, rest: str) -> None:
    session, settings, number = chat.session, chat.settings, chat.log.number
    values = {**dataclasses.asdict(session.sampling), "n": settings.n_tokens}
    chat.say(one_line(session.describe()))
    if adapter := chat.log.conversation.adapter:
        chat.say(f"{'adapter'.ljust(15)} {one_line(adapter.path)}")
    for name, value in values.items():
        chat.say(f"{name.ljust(15)} {'none' if value is None else value}")
    chat.say(f"{'stop'.ljust(15)} {', '.join(map(repr, settings.stop)) or 'none'}")
    chat.say(f"{'system'.ljust(15)} {chat.system or 'none'}")
    told = ", ".join(f"{name}={value!r}" for name, value in chat.prompter.variables.items())
    chat.say(f"{'variables'.ljust(15)} {one_line(told) or 'none'}")
    used = len(chat.prompter.chat_ids(chat.prompt_messages())) if chat.messages else 0
    chat.say(f"{'conversation'.ljust(15)} {len(chat.messages)} messages, {used} tokens")
    kept = "nowhere" if number is None else f"picoedge chat --continue {number}"
    chat.say(f"{'kept'.ljust(15)} {kept}")


def _set(chat: Chat, rest: str) -> None:
    """`/set NAME VALUE`, or as in Ollama `/set parameter NAME VALUE`."""
    name, _, value = rest.removeprefix("parameter ").strip().partition(" ")
    if not name:
        _show(chat, rest)
        return
    name, value = name.replace("-", "_"), value.strip()
    if name == "var":
        name, _, value = (part.strip() for part in value.partition("=" if "=" in value else " "))
        chat.set(VARIABLE + name, parse_variable(value) if value else None)
    else:
        chat.set(name, value)
    if name in ("verbose", "quiet"):
        chat.say("rates are shown" if chat.settings.verbose else "rates are not shown")
    else:
        chat.say(f"{name} is {value or 'empty'}")


def _save(chat: Chat, rest: str) -> None:
    """`/save FILE`; an error leaves no partial file."""
    path = _path(rest, "/save FILE")
    adapter = chat.log.conversation.adapter
    value = {
        "model": chat.session.name,
        "adapter": adapter and adapter.to_json(),
        "system": chat.system,
        "messages": chat.messages,
    }
    text = json.dumps(value, indent=1, ensure_ascii=False)
    try:
        replace_file(path, text.encode("utf-8", "replace"), 0o600)
    except OSError as error:
        raise storage_error(error) from error
    chat.say(f"saved to {path}")


def _load(chat: Chat, rest: str) -> None:
    """`/load FILE`: replaces this conversation."""
    path = _path(rest, "/load FILE")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES)
        check_values(data)
        value = json.loads(data)
    except OSError as error:
        raise storage_error(error) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a saved conversation: {error}") from None
    system, messages = checked_conversation(value, path)
    chat.log.add("load", system=system, messages=list(messages))
    chat.say(f"{len(messages)} messages from {path}")


def checked_conversation(value: Any, path: Path) -> tuple[str, tuple[Message, ...]]:
    """The system's message and the turns of a saved conversation. Raises UsageError."""
    entries = value.get("messages") if isinstance(value, dict) else None
    system = value.get("system", "") if isinstance(value, dict) else None
    turns = whole_turns(entries)
    if turns is None or not isinstance(system, str):
        raise UsageError(
            f"{path} is not a saved conversation by turns of user and assistant", "/save writes one"
        )
    return system, turns


def _path(text: str, usage: str) -> Path:
    if not text:
        raise UsageError("no file was named", usage)
    return Path(text).expanduser()


COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "/?": _help,
    "/help": _help,
    "/clear": _clear,
    "/regen": _regenerate,
    "/set": _set,
    "/show": _show,
    "/save": _save,
    "/load": _load,
}
LEAVING = ("/bye", "/exit", "/quit")
WORDS = (*COMMANDS, *LEAVING)
