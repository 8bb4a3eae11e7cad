"""A chat on a console: messages, answers, slash commands, Ctrl-C, and how it ends."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.cli.chat_console import TerminalConsole
from picoedge.cli.failures import EXIT_INTERRUPTED, storage_error
from picoedge.cli.output import error_line
from picoedge.cli.reports import timings
from picoedge.errors import PicoedgeError, UsageError
from picoedge.files import replace_file
from picoedge.sanitize import one_line
from picoedge.suggest import did_you_mean

if TYPE_CHECKING:
    from picoedge.engine.session import Prompter, Session

HELP = '''\
/?                 this list
/bye               leave (also Ctrl-D)
/clear             forget the conversation
/regen             answer the last message again
/set NAME VALUE    temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed,
                   n (tokens of an answer), stop TEXT, system TEXT
/set verbose       show rates after each answer (/set quiet: no longer)
/show              the settings and what the conversation holds
/save FILE         write the conversation to a file
/load FILE         go on with a conversation from a file
"""                begin and end a message of several lines
Ctrl-C             stop the answer; twice: leave'''

MAX_FILE_BYTES = 64 << 20
SAMPLING_TYPES: dict[str, Callable[[str], float]] = {
    "temperature": float, "top_k": int, "top_p": float, "min_p": float,
    "repeat_penalty": float, "repeat_last_n": int, "seed": int,
}  # fmt: skip


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
        self, session: Session, prompter: Prompter, console: TerminalConsole, settings: ChatSettings
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
                if is_command(message):
                    if not run_command(self, message):
                        return 0
                elif message.strip():
                    self.ask(message.strip("\n"))
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
        stats, n_ctx = self.session.stats, self.session.model.n_ctx
        if stats.context_full:
            self.say(f"[the context of {n_ctx} tokens is full: /clear empties it]")
        elif stats.finish_reason == "length":
            more = self.settings.n_tokens * 2
            self.say(f"[stopped after {len(stats.tokens)} tokens: /set n {more}]")
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


def is_command(message: str) -> bool:
    """Whether a message is a command: `/word`, but not a path such as `/etc/hosts`."""
    word = message.split(maxsplit=1)[0] if message.strip() else ""
    return message.startswith("/") and "/" not in word[1:] and "\n" not in message


def run_command(chat: Chat, message: str) -> bool:
    """Run a command; False ends the conversation. Raises PicoedgeError."""
    word, _, rest = message.strip().partition(" ")
    if word in ("/bye", "/exit", "/quit"):
        return False
    action = COMMANDS.get(word)
    if action is None:
        hint = did_you_mean(word, [*COMMANDS, "/bye"]) or "/? lists the commands"
        raise UsageError(f"no such command: {word}", hint)
    action(chat, rest.strip())
    return True


def _help(chat: Chat, rest: str) -> None:
    chat.say(HELP)


def _clear(chat: Chat, rest: str) -> None:
    """`/clear`: the settings stay."""
    chat.messages.clear()
    chat.session.forget()
    chat.say("the conversation is empty")


def _regenerate(chat: Chat, rest: str) -> None:
    """`/regen`: answer the last message again, with the sampler's next random choices."""
    if not chat.messages:
        raise UsageError("nothing has been asked yet", "write something")
    before = list(chat.messages)
    question = before[-2]["content"]
    del chat.messages[-2:]
    try:
        chat.ask(question)
    finally:
        if not chat.messages[len(before) - 2 :]:  # no new answer: keep the old one
            chat.messages[:] = before


def _show(chat: Chat, rest: str) -> None:
    session, settings = chat.session, chat.settings
    values = {**dataclasses.asdict(session.sampling), "n": settings.n_tokens}
    chat.say(one_line(session.describe()))
    for name, value in values.items():
        chat.say(f"{name.ljust(15)} {'none' if value is None else value}")
    chat.say(f"{'stop'.ljust(15)} {', '.join(map(repr, settings.stop)) or 'none'}")
    chat.say(f"{'system'.ljust(15)} {settings.system or 'none'}")
    used = len(chat.prompter.chat_ids(chat.prompt_messages())) if chat.messages else 0
    chat.say(f"{'conversation'.ljust(15)} {len(chat.messages)} messages, {used} tokens")


def _set(chat: Chat, rest: str) -> None:
    """`/set NAME VALUE`, or as in Ollama `/set parameter NAME VALUE`."""
    name, _, value = rest.removeprefix("parameter ").strip().partition(" ")
    name, value, settings = name.replace("-", "_"), value.strip(), chat.settings
    if name in ("verbose", "quiet"):
        settings.verbose = name == "verbose"
        chat.say("rates are shown" if settings.verbose else "rates are not shown")
        return
    if name in SAMPLING_TYPES:
        number: Any = None if (name, value) == ("seed", "none") else _number(name, value)
        chat.session.set_sampling(dataclasses.replace(chat.session.sampling, **{name: number}))
    elif name == "n":
        settings.n_tokens = max(-1, int(_number(name, value)))
    elif name == "system":
        settings.system = value
    elif name == "stop":
        settings.stop = [value] if value else []
    else:
        names = [*SAMPLING_TYPES, "n", "stop", "system", "verbose", "quiet"]
        hint = did_you_mean(name, names) or f"known: {', '.join(names)}"
        raise UsageError(f"nothing to set by the name {name!r}", hint)
    chat.say(f"{name} is {value or 'empty'}")


def _number(name: str, text: str) -> float:
    try:
        return SAMPLING_TYPES.get(name, int)(text)
    except ValueError:
        raise UsageError(f"{name} {text!r} is not a number", f"/set {name} VALUE") from None


def _save(chat: Chat, rest: str) -> None:
    """`/save FILE`; an error leaves no partial file."""
    path = _path(rest, "/save FILE")
    value = {"model": chat.session.name, "system": chat.settings.system, "messages": chat.messages}
    try:
        replace_file(path, json.dumps(value, indent=1, ensure_ascii=False).encode())
    except OSError as error:
        raise storage_error(error) from error
    chat.say(f"saved to {path}")


def _load(chat: Chat, rest: str) -> None:
    """`/load FILE`: replaces this conversation."""
    path = _path(rest, "/load FILE")
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(MAX_FILE_BYTES))
    except OSError as error:
        raise storage_error(error) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a saved conversation: {error}") from None
    system, messages = checked_conversation(value, path)
    chat.settings.system, chat.messages[:] = system, messages
    chat.say(f"{len(messages)} messages from {path}")


def checked_conversation(value: Any, path: Path) -> tuple[str, list[dict[str, str]]]:
    """The system's message and the turns of a saved conversation. Raises UsageError."""
    entries = value.get("messages") if isinstance(value, dict) else None
    system = value.get("system", "") if isinstance(value, dict) else None
    if not isinstance(entries, list) or not isinstance(system, str) or len(entries) % 2:
        raise UsageError(f"{path} is not a saved conversation", "/save writes one")
    turns: list[dict[str, str]] = []
    for i, entry in enumerate(entries):
        role = ("user", "assistant")[i % 2]
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or entry.get("role") != role:
            raise UsageError(f"{path}: message {i + 1} is not of the {role}", "/save writes one")
        turns.append({"role": role, "content": content})
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
