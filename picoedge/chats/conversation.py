"""Conversation: the state of a chat as a fold over its records. Pure.

    {"kind": "chat", "version": 1, "at": 1.7e9, "model": NAME, "source": PATH}
    {"kind": "adapter", "path": PATH, "identity": HASH}  the model's adapter; "path": "": none
    {"kind": "set", "name": "system", "value": "Be brief."}
    {"kind": "question", "text": …}
    {"kind": "answer", "text": …, "end": "stop" | "length" | "cancelled" | "error" | "left"}
    {"kind": "regenerate"}                               the last question is asked again
    {"kind": "load", "system": …, "messages": […]}       replaces the messages

A chat keeps no other state: its file gives the conversation that was on the screen. Records come
from files that a person may have edited, so a malformed record changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

CHAT_VERSION = 1  # of the records
MOST_SETTINGS = 100
_LONGEST_NAME = 1000
_END_OF_TIME = 1e11  # seconds since 1970: the year 5138
_LONGEST_PATH = 4096
_IDENTITY = re.compile(r"[0-9a-f]{32}")

Record = Mapping[str, Any]
Message = dict[str, str]


@dataclass(frozen=True)
class ChatAdapter:
    """The adapter that a conversation is held with: its folder, and the hash of its values."""

    path: str  # absolute
    identity: str

    @property
    def name(self) -> str:
        """Its folder's."""
        return self.path.rstrip("/").rpartition("/")[2]

    def to_json(self) -> dict[str, str]:
        """Its fields by name."""
        return {"path": self.path, "identity": self.identity}


@dataclass(frozen=True)
class Conversation:
    """A conversation after some records. `messages` are whole turns, without the system message."""

    model: str = ""  # its name
    source: str = ""  # MODEL as it was typed; a path is absolute
    began_at: float = 0.0  # seconds since 1970, by the board's clock
    settings: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    question: str | None = None  # asked last, without an answer so far
    regenerating: bool = False  # the question of the last turn is asked again
    adapter: ChatAdapter | None = None

    @property
    def unanswered(self) -> str | None:
        """The last question, where nothing was ever answered to it."""
        return None if self.regenerating else self.question

    @property
    def settled(self) -> tuple[Message, ...]:
        """The turns before the question."""
        return self.messages[:-2] if self.regenerating else self.messages

    @property
    def prompt(self) -> list[Message]:
        """The messages that a model is to answer: they end with the question, if there is one."""
        last = [] if self.question is None else [{"role": "user", "content": self.question}]
        return [*self.settled, *last]

    @property
    def system(self) -> str:
        """The system message."""
        value = self.settings.get("system")
        return value if isinstance(value, str) else ""


def fold(records: Iterable[Record]) -> Conversation:
    """The conversation after these records."""
    conversation = Conversation()
    for record in records:
        conversation = apply(conversation, record)
    return conversation


def snapshot(conversation: Conversation) -> list[Record]:
    """Records that make this conversation, in a file of its own."""
    here = conversation
    records: list[Record] = [
        {
            "kind": "chat",
            "version": CHAT_VERSION,
            "at": here.began_at,
            "model": here.model,
            "source": here.source,
        }
    ]
    if here.adapter is not None:
        records.append({"kind": "adapter", **here.adapter.to_json()})
    records += [{"kind": "set", "name": k, "value": v} for k, v in here.settings.items()]
    if here.messages:
        records.append({"kind": "load", "messages": list(here.messages)})
    if here.regenerating:
        records.append({"kind": "regenerate"})
    elif here.question is not None:
        records.append({"kind": "question", "text": here.question})
    return records


def apply(before: Conversation, record: Record) -> Conversation:
    """The conversation after one more record; the same where the record makes no sense."""
    kind = record.get("kind")
    step = _STEPS.get(kind) if isinstance(kind, str) else None
    return before if step is None else step(before, record)


def _begin(before: Conversation, record: Record) -> Conversation:
    at: Any = record.get("at")
    return replace(
        before,
        model=_text(record, "model")[:_LONGEST_NAME],
        source=_text(record, "source")[: 4 * _LONGEST_NAME],
        began_at=float(at) if type(at) in (int, float) and 0 <= at < _END_OF_TIME else 0.0,
    )


def _adapt(before: Conversation, record: Record) -> Conversation:
    path, identity = _text(record, "path"), _text(record, "identity")
    if record.get("path") == "":
        return replace(before, adapter=None)
    if not 0 < len(path) <= _LONGEST_PATH or not _IDENTITY.fullmatch(identity):
        return before
    return replace(before, adapter=ChatAdapter(path, identity))


def _set(before: Conversation, record: Record) -> Conversation:
    name, value = record.get("name"), record.get("value")
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        return before
    if name not in before.settings and len(before.settings) >= MOST_SETTINGS:
        return before
    return replace(before, settings={**before.settings, name: value})


def _ask(before: Conversation, record: Record) -> Conversation:
    text = _text(record, "text")
    return replace(before, question=text, regenerating=False) if text else before


def _answer(before: Conversation, record: Record) -> Conversation:
    """An empty answer takes the question back; a question asked again keeps its old answer."""
    text, turns = _text(record, "text"), before.messages
    if before.question is None:
        return before
    if text:
        turns = (*before.settled, *turn(before.question, text))
    return replace(before, messages=turns, question=None, regenerating=False)


def _regenerate(before: Conversation, record: Record) -> Conversation:
    if before.question is not None or not before.messages:
        return before
    return replace(before, question=before.messages[-2]["content"], regenerating=True)


def _load(before: Conversation, record: Record) -> Conversation:
    turns = whole_turns(record.get("messages"))
    if turns is None:
        return before
    loaded = replace(before, messages=turns, question=None, regenerating=False)
    system = record.get("system")
    return loaded if system is None else _set(loaded, {"name": "system", "value": system})


def turn(question: str, answer: str) -> tuple[Message, Message]:
    """The two messages of a turn."""
    return {"role": "user", "content": question}, {"role": "assistant", "content": answer}


def whole_turns(value: Any) -> tuple[Message, ...] | None:
    """Messages by turns of user and assistant, cleaned; None where they are anything else."""
    if not isinstance(value, list) or len(value) % 2:
        return None
    turns: list[Message] = []
    for i, entry in enumerate(value):
        role = ("user", "assistant")[i % 2]
        if not isinstance(entry, dict) or entry.get("role") != role:
            return None
        if not isinstance(entry.get("content"), str):
            return None
        turns.append({"role": role, "content": encodable(entry["content"])})
    return tuple(turns)


def encodable(text: str) -> str:
    """`text` as UTF-8 can hold it: JSON and terminals may bring halves of a character."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _text(record: Record, name: str) -> str:
    value = record.get(name)
    return encodable(value) if isinstance(value, str) else ""


_STEPS = {
    "chat": _begin,
    "adapter": _adapt,
    "set": _set,
    "question": _ask,
    "answer": _answer,
    "regenerate": _regenerate,
    "load": _load,
}
