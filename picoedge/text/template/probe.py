"""Behaviour of a chat template, found by rendering marked messages.

A template may want contents as texts or as lists of parts, may refuse a system message, drop it, or
print the last message alone. Jinja prints nothing for what it cannot find, so a wrong guess loses
the question in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from picoedge.errors import TextError

TemplateMessage = Mapping[str, Any]
Render = Callable[[Sequence[TemplateMessage], Mapping[str, Any]], str]

OWN_SYSTEM, MERGED = "own", "merged"
STRING, PARTS = "string", "parts"
THINKING_SWITCHES = ("enable_thinking", "thinking")
# Letters and digits alone, and compared without regard to case: templates trim and capitalize.
_SYSTEM, _FIRST, _ANSWER, _LAST = (f"zqxjkv{name}vkjxqz" for name in ("0s", "1q", "2a", "3q"))
_DROPS = "the model's chat template drops"
_REMEDY = "complete plain text instead: picoedge generate --raw"
_TOOL = {
    "type": "function",
    "function": {
        "name": _ANSWER,
        "description": _ANSWER,
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}, "required": []},
    },
}


@dataclass(frozen=True)
class TemplateFacts:
    """Behaviour of a template: how it takes a conversation, and what it can be told.

    `parts`: roles whose content it reads as a list of parts. `system`: "own" where it has a place
    for a system message, "merged" where that goes before the first question. `history`: whether
    earlier questions and answers are rendered. `tools`: whether tools are. `thinking`: the variable
    that switches thinking, "" where there is none; `thinks`: its value unless told otherwise.
    `variables`: the names it reads beyond the conversation's.
    """

    parts: frozenset[str] = frozenset()
    system: str = OWN_SYSTEM
    history: bool = True
    tools: bool = False
    thinking: str = ""
    thinks: bool | None = None
    variables: frozenset[str] = frozenset()

    @property
    def content(self) -> str:
        """Form in which a question is given: "string" or "parts"."""
        return PARTS if "user" in self.parts else STRING

    def notes(self, messages: Iterable[TemplateMessage]) -> list[str]:
        """Surprises in the prompt of these messages (a dropped system message), a sentence each."""
        roles = [message.get("role") for message in messages]
        notes = []
        if "system" in roles and self.system == MERGED:
            notes.append(
                "the model's chat template takes no system message: "
                "it goes before the first question"
            )
        if "assistant" in roles and not self.history:
            notes.append(f"{_DROPS} earlier questions and answers: the model sees the last alone")
        return notes

    def arrange(self, messages: Sequence[TemplateMessage]) -> list[dict[str, Any]]:
        """`messages` as the template takes them."""
        arranged = [dict(message) for message in messages]
        if self.system == MERGED:
            arranged = _merge_system(arranged)
        for message in arranged:
            content = message.get("content")
            if message.get("role") in self.parts:
                message["content"] = _as_parts(content)
            elif isinstance(content, (list, tuple)):
                message["content"] = _as_text(content)
        return arranged


def probe_template(render: Render, variables: Iterable[str]) -> TemplateFacts:
    """The facts of a template. `variables`: the names it reads.

    Raises TextError where the template drops the question, and what it raises itself where it
    renders no question.
    """
    probe = _Probe(render)
    parts = probe.question_form()
    parts, history = probe.answer_form(parts)
    parts, system = probe.system_form(parts, history)
    switch, default = probe.thinking(parts, frozenset(variables))
    return TemplateFacts(
        parts=parts,
        system=system,
        history=history,
        tools=probe.shows([("user", _FIRST)], parts, _ANSWER, variables={"tools": [_TOOL]}),
        thinking=switch,
        thinks=default,
        variables=frozenset(variables),
    )


def check_kept(
    messages: Sequence[TemplateMessage],
    text: str,
    render: Callable[[Sequence[TemplateMessage]], str],
    all_of: bool,
) -> None:
    """Refuse a rendering `text` that lacks a question or the system message.

    `messages` as rendered; `all_of`: also the earlier questions. Raises TextError.
    """
    asked = [i for i, m in enumerate(messages) if m.get("role") in ("user", "system")]
    questions = [i for i in asked if messages[i]["role"] == "user"]
    due = [i for i in asked if all_of or i in questions[-1:] or i not in questions]
    missing = [
        i
        for i in due
        if (said := _as_text(messages[i].get("content")).strip()) and said not in text
    ]
    if not missing:
        return
    # A template may change what it renders, as by another case: an unmistakable text tells.
    marks = {i: f"{_SYSTEM}{i}x" for i in missing}
    marked = [
        {**m, "content": _marked(m.get("content"), marks[i])} if i in marks else m
        for i, m in enumerate(messages)
    ]
    shown = render(marked).casefold()
    for i, mark in marks.items():
        if mark not in shown:
            what = "the system message" if messages[i]["role"] == "system" else "the question"
            raise TextError(f"{_DROPS} {what}", _REMEDY)


class _Probe:
    """Renderings of marked conversations, given as (role, text) pairs."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self.refusal: TextError | None = None

    def text(
        self,
        talk: Sequence[tuple[str, str]],
        parts: frozenset[str],
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The rendering; "" where the template refuses."""
        messages = [
            {"role": role, "content": _as_parts(text) if role in parts else text}
            for role, text in talk
        ]
        try:
            return self._render(messages, variables or {}).casefold()
        except TextError as error:
            self.refusal = self.refusal or error
            return ""

    def shows(
        self,
        talk: Sequence[tuple[str, str]],
        parts: frozenset[str],
        *marks: str,
        variables: Mapping[str, Any] | None = None,
    ) -> bool:
        """Whether the rendering shows all `marks`, which default to every text of `talk`."""
        text = self.text(talk, parts, variables)
        return all(mark in text for mark in marks or (mark for _, mark in talk))

    def question_form(self) -> frozenset[str]:
        """Roles of parts, by the question alone. Raises TextError where it never shows."""
        for talk in ([("user", _FIRST)], [("system", _SYSTEM), ("user", _FIRST)]):
            for parts in (frozenset[str](), frozenset({"user"})):
                if self.shows(talk, parts, _FIRST):
                    return parts
        raise self.refusal or TextError(f"{_DROPS} the question", _REMEDY)

    def answer_form(self, parts: frozenset[str]) -> tuple[frozenset[str], bool]:
        """Roles of parts, with the answers'; whether earlier turns show."""
        talk = [("user", _FIRST), ("assistant", _ANSWER), ("user", _LAST)]
        for form in _forms(parts, "assistant"):
            if self.shows(talk, form):
                return form, True
        return next(_forms(parts, "assistant")), False

    def system_form(self, parts: frozenset[str], history: bool) -> tuple[frozenset[str], str]:
        """Roles of parts, with the system's; where a system message goes."""
        talk = [("system", _SYSTEM), ("user", _FIRST)]
        longer = [*talk, ("assistant", _ANSWER), ("user", _LAST)]
        for form in _forms(parts, "system"):
            if self.shows(talk, form) and (not history or self.shows(longer, form)):
                return form, OWN_SYSTEM
        return parts, MERGED

    def thinking(self, parts: frozenset[str], variables: frozenset[str]) -> tuple[str, bool | None]:
        """The variable that switches thinking, and its default."""
        talk = [("user", _FIRST)]
        for name in THINKING_SWITCHES:
            if name in variables:
                on = self.text(talk, parts, {name: True})
                off = self.text(talk, parts, {name: False})
                if on and off and on != off:
                    default = self.text(talk, parts)
                    return name, True if default == on else False if default == off else None
        return "", None


def _forms(parts: frozenset[str], role: str) -> Iterator[frozenset[str]]:
    """The sets of roles to try: `role` like the questions first."""
    with_role, without = parts | {role}, parts - {role}
    return iter((with_role, without) if "user" in parts else (without, with_role))


def _merge_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """System messages put before the question that follows, or made a question at the end."""
    merged: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        if message.get("role") == "system":
            waiting.append(_as_text(message.get("content")))
        elif message.get("role") == "user" and waiting:
            text = _as_text(message.get("content"))
            merged.append({**message, "content": "\n\n".join(filter(None, [*waiting, text]))})
            waiting = []
        else:
            merged.append(message)
    if waiting:
        merged.append({"role": "user", "content": "\n\n".join(waiting)})
    return merged


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_text(content: Any) -> str:
    """The text of a content. Raises TextError for parts that are no text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, (list, tuple)):
        raise TextError("a message's content is neither text nor a list of parts")
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        raise TextError("a message holds a part that is no text", "give text alone")
    return "\n".join(texts)


def _marked(content: Any, mark: str) -> Any:
    """A content of the same form whose text ends with `mark`."""
    text = f"{_as_text(content)} {mark}"
    return text if isinstance(content, str) else _as_parts(text)
