"""A chat's turns: questions sent, answers streamed and kept, Ctrl-C, settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from picoedge.chats.conversation import Message
from picoedge.cli.chat_console import Console
from picoedge.cli.chat_log import ChatLog
from picoedge.cli.reports import timings
from picoedge.errors import PicoedgeError, UsageError
from picoedge.suggest import did_you_mean

if TYPE_CHECKING:
    from picoedge.engine.session import Prompter, Session

SAMPLING_TYPES: dict[str, Callable[[str], float]] = {
    "temperature": float, "top_k": int, "top_p": float, "min_p": float,
    "repeat_penalty": float, "repeat_last_n": int, "seed": int,
}  # fmt: skip
SETTINGS = (
    *SAMPLING_TYPES, "n", "stop", "system", "think", "var", "chat_template", "verbose", "quiet",
)  # fmt: skip
MOST_KEPT_FREE = 1024  # tokens of the context for an answer: as long as one is by default
VARIABLE = "var."  # before the name of a template's variable, in the name of a setting
_SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


@dataclass
class ChatSettings:
    """Settings that `/set` changes, apart from the sampling options, which are the session's, and
    the system message, which is the conversation's.
    """

    n_tokens: int = -1
    stop: list[str] = field(default_factory=list)
    verbose: bool = False


class Chat:
    """One session on one console, and the conversation that is kept of it."""

    def __init__(
        self,
        session: Session,
        prompter: Prompter,
        console: Console,
        settings: ChatSettings,
        log: ChatLog | None = None,
    ) -> None:
        self.session, self.prompter = session, prompter
        self.console, self.settings = console, settings
        self.log = log or ChatLog()
        self.interrupted = False  # the last event was Ctrl-C
        self._told = set[str]()  # what the template does, said once
        self._left_out = 0  # of the oldest messages, which the context has no room for

    @property
    def messages(self) -> list[Message]:
        """The turns so far, without the system's message."""
        return list(self.log.conversation.messages)

    @property
    def system(self) -> str:
        """The system message."""
        return self.log.conversation.system

    def ask(self, message: str) -> None:
        """Send a message and stream the answer."""
        self.log.add("question", text=message)
        self.answer()

    def answer(self) -> None:
        """Answer the open question; an interrupted answer keeps its text so far.

        Ctrl-C before the first word takes the question back; after an error `/regen` asks it again.
        """
        pieces: list[str] = []
        end = "left"
        try:
            self._stream(pieces)
            end = self.session.stats.finish_reason
        except PicoedgeError:
            end = "error"
            raise
        finally:
            answer = "".join(pieces)
            if answer or end in ("stop", "length", "cancelled"):
                self.log.add("answer", text=answer, end=end)

    def _stream(self, pieces: list[str]) -> None:
        """Show an answer as it comes; Ctrl-C ends it, a second Ctrl-C raises KeyboardInterrupt."""
        session, settings = self.session, self.settings
        limit = None if settings.n_tokens < 0 else settings.n_tokens
        with self.console.interrupts(self._on_interrupt):
            messages = self._fitting_messages()
            self._tell_of_template(messages)
            prompt = self.prompter.chat(messages)
            self.console.begin_answer(self.prompter.begins_thinking(prompt))
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

    def _tell_of_template(self, messages: list[Message]) -> None:
        """Print, once each, the template's surprises with such messages (see `Prompter.notes`)."""
        for note in self.prompter.notes(messages):
            if note not in self._told:
                self._told.add(note)
                self.say(f"[{note}]")

    def _on_interrupt(self) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.session.cancel()

    def _tell_end(self) -> None:
        stats, n_ctx = self.session.stats, self.session.model.n_ctx
        if stats.context_full:
            self.say(f"[the answer ends here: the context of {n_ctx} tokens is full]")
        elif stats.finish_reason == "length":
            more = self.settings.n_tokens * 2
            self.say(f"[stopped after {len(stats.tokens)} tokens: /set n {more}]")
        if self.settings.verbose:
            for line in timings(self.session):
                self.say(f"[{line}]")

    def prompt_messages(self) -> list[Message]:
        """The messages for the chat template, the system's first; without those left out."""
        conversation = self.log.conversation
        system = {"role": "system", "content": conversation.system}
        if self._left_out > len(conversation.settled):  # the conversation began anew
            self._left_out = 0
        return [system] * bool(conversation.system) + conversation.prompt[self._left_out :]

    def _fitting_messages(self) -> list[Message]:
        """As `prompt_messages`; the oldest turns are left out where the context is nearly full.

        Then so many at once that half of it is free: each time the cache is computed anew.
        """
        messages, before = self.prompt_messages(), self._left_out
        settled, n_ctx = len(self.log.conversation.settled), self.session.model.n_ctx
        room = n_ctx - min(n_ctx // 4, MOST_KEPT_FREE)
        while self._left_out < settled and len(self.prompter.chat_ids(messages)) > room:
            self._left_out, room = self._left_out + 2, n_ctx // 2
            messages = self.prompt_messages()
        if self._left_out > before:
            turns = self._left_out // 2
            what = "the first turn is" if turns == 1 else f"the first {turns} turns are"
            self.say(f"[the context of {n_ctx} tokens is full: {what} no longer sent]")
        return messages

    def set(self, name: str, value: Any) -> None:
        """Change a setting, for this chat and for processes that continue it. Raises UsageError."""
        self.apply(name, value)
        if name not in ("verbose", "quiet", "chat_template"):  # which is kept with the pack
            self.log.add("set", name=name, value=value)

    def apply(self, name: str, value: Any) -> None:
        """Do what a setting says. Raises UsageError."""
        if name in ("verbose", "quiet"):
            self.settings.verbose = name == "verbose"
        elif name in SAMPLING_TYPES:
            number: Any = None if (name, value) == ("seed", "none") else _number(name, value)
            changed = dataclasses.replace(self.session.sampling, **{name: number})
            self.session.set_sampling(changed)
        elif name == "n":
            n_tokens = int(_number(name, value))
            if n_tokens < -1:
                raise UsageError(
                    f"n {n_tokens} is no number of tokens", "-1 is as many as there are"
                )
            self.settings.n_tokens = n_tokens
        elif name == "stop":
            texts = value if isinstance(value, list) else [value]
            self.settings.stop = [str(text) for text in texts if text]
        elif name == "think":
            if (thinks := _SWITCH.get(str(value).lower())) is None:
                raise UsageError(f"think {value!r} is neither on nor off", "/set think off")
            self.prompter = self.prompter.with_thinking(thinks)
        elif name.startswith(VARIABLE):
            self.prompter = self.prompter.with_variable(name.removeprefix(VARIABLE), value)
        elif name == "chat_template":
            self.prompter = self.prompter.with_template(str(value))
        elif name != "system":
            hint = did_you_mean(name, SETTINGS) or f"known: {', '.join(SETTINGS)}"
            raise UsageError(f"nothing to set by the name {name!r}", hint)

    def say(self, line: str) -> None:
        """A line of this program on the console."""
        self.console.say(line)


def _number(name: str, text: object) -> float:
    try:
        return SAMPLING_TYPES.get(name, int)(str(text))
    except (ValueError, OverflowError):
        raise UsageError(f"{name} {text!r} is not a number", f"/set {name} VALUE") from None
