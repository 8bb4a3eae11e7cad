"""Chat template: renders a conversation as the text that the model continues, and encodes it."""

from __future__ import annotations

import datetime
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.errors import PicoedgeError, TextError
from picoedge.files import read_text_file
from picoedge.text.template.probe import TemplateFacts, check_kept, probe_template
from picoedge.text.tokenizer.base import TextSettings, Tokenizer

if TYPE_CHECKING:
    import jinja2

    from picoedge.text.template.sandbox import Environment

TEMPLATE_FILE = "chat_template.jinja"
MAX_TEMPLATE_CHARACTERS = 100_000
_MAX_DATE_FORMAT = 100
_REMEDY = "try the prompt without a template"
_RESERVED = frozenset({"messages", "add_generation_prompt"})
_FIRST_MARK, _LAST_MARK = 0xF0000, 0x10FFFF  # the private-use planes of Unicode
_MARK = re.compile(f"([{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}])")


def chosen_path(pack: Path) -> Path:
    """Path of the template that a user chose for a pack: beside it."""
    return pack.absolute().with_name(f"{pack.absolute().name}.{TEMPLATE_FILE}")


class ChatTemplate:
    """One model's template. Thread-safe."""

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise TextError(f"a chat template of {len(source)} characters is too long", _REMEDY)
        self.source = source
        self._names = {"bos_token": bos_token, "eos_token": eos_token}
        self._now = now
        self._lock = threading.Lock()
        self._compiled: tuple[Environment, jinja2.Template] | None = None
        self._facts: TemplateFacts | None = None
        self.chosen = False  # by the user, in place of the model's own
        self.stops: tuple[str, ...] = ()  # texts that end an answer, where no token does

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        chosen: bool = True,
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> ChatTemplate | None:
        """The template of a pack, None where it has none; the one chosen for it where `chosen`.

        `now`: the day that it may write into a prompt. Raises TextError.
        """
        paths = [chosen_path(folder)] * chosen + [folder / TEMPLATE_FILE]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            return None
        settings = TextSettings.read(folder)
        source = read_text_file(path, 4 * MAX_TEMPLATE_CHARACTERS)
        template = cls(source, bos_token=settings.bos_token, eos_token=settings.eos_token, now=now)
        template.chosen = path.name != TEMPLATE_FILE
        return template

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text, ending where the assistant's answer begins.

        Messages have `role` and `content`; `variables` are a template's own, such as Qwen3's
        `enable_thinking`. Raises TextError where the template refuses the messages, is broken,
        reaches for internals, or works too long.
        """
        with self._lock, _template_errors():
            values = self._values(messages, variables or {}, add_generation_prompt)
            self._refill(values)
            return self._render(values)

    def probe(self) -> TemplateFacts:
        """The template's behaviour with a conversation; found at the first call, within the bounds
        of one rendering. Raises TextError where it drops the question, or refuses it.
        """
        with self._lock, _template_errors():
            if self._facts is None:
                self._refill(self._names)
                self._facts = probe_template(self._probed, self._variables())
            return self._facts

    def literals(self) -> str:
        """All text that stands in the template itself. Raises TextError where it is broken."""
        from jinja2 import nodes

        with self._lock, _template_errors():
            tree = self._compile()[0].parse(self.source)
            data = [node.data for node in tree.find_all(nodes.TemplateData)]
            constants = [node.value for node in tree.find_all(nodes.Const)]
            return "\n".join([*data, *(value for value in constants if isinstance(value, str))])

    def _probed(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        with _template_errors():
            return self._render(self._values(messages, variables, True))

    def _variables(self) -> frozenset[str]:
        """Names that the template reads beyond the variables of every conversation."""
        from picoedge.text.template.sandbox import read_variables

        environment, _ = self._compile()
        read = read_variables(environment.parse(self.source))
        return read - _RESERVED - self._names.keys() - {"tools", "documents"}

    def _values(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        add_generation_prompt: bool,
    ) -> dict[str, Any]:
        if taken := _RESERVED & variables.keys():
            raise TextError(f"{min(taken)} is no variable to set", "the conversation sets it")
        return {
            "tools": None,
            "documents": None,
            **self._names,
            **variables,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }

    def _compile(self) -> tuple[Environment, jinja2.Template]:
        from picoedge.text.template.meter import Meter
        from picoedge.text.template.sandbox import Environment

        if self._compiled is None:
            environment = Environment(Meter(len(self.source)))
            environment.globals["strftime_now"] = self._strftime_now
            self._compiled = environment, environment.template(self.source)
        return self._compiled

    def _refill(self, values: Mapping[str, Any]) -> None:
        """Begin the work on `values`: what it may cost is counted from here."""
        from picoedge.text.template.meter import tree_size

        environment, _ = self._compile()
        environment.meter.refill(len(self.source) + tree_size(values))

    def _render(self, values: dict[str, Any]) -> str:
        return self._compile()[1].render(values)

    def _strftime_now(self, form: str) -> str:
        if len(form) > _MAX_DATE_FORMAT:
            raise ValueError("a date format too long")
        return self._now().strftime(form)


@contextmanager
def _template_errors() -> Iterator[None]:
    """Turn what a template raises into TextError."""
    import jinja2  # tens of ms, needed by chats alone

    try:
        yield
    except jinja2.TemplateError as error:
        raise TextError(f"the chat template failed: {error.message}", _REMEDY) from error
    except PicoedgeError:
        raise
    except Exception as error:  # a stranger's program may raise any: "1e999" is a NameError
        what = f"{type(error).__name__}: {error}"
        raise TextError(f"the chat template failed: {what}", _REMEDY) from error


class _Marks:
    """One-character placeholders for text that must reach the model as plain text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokens = tokenizer.special_tokens
        self._names = {i: name for name, i in self._tokens.ids.items()}
        self._numbers: dict[str, int] = {}

    def hide(self, value: Any) -> Any:
        """`value` (as in JSON) with the names of special tokens replaced by marks."""
        if isinstance(value, str):
            # Characters that look like marks are replaced too, so that every mark is ours.
            parts = _MARK.sub(lambda found: self._mark(found[0]), value)
            return "".join(
                part if isinstance(part, str) else self._mark(self._names[part])
                for part in self._tokens.split(parts)
            )
        if isinstance(value, Mapping):
            return {key: self.hide(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(item) for item in value]
        return value

    def reveal(self, text: str) -> str:
        """`text` with marks replaced by what they stand for."""
        plain = list(self._numbers)
        return _MARK.sub(lambda found: plain[ord(found[0]) - _FIRST_MARK], text)

    @property
    def used(self) -> bool:
        """Whether anything was hidden."""
        return bool(self._numbers)

    def _mark(self, text: str) -> str:
        number = self._numbers.setdefault(text, len(self._numbers))
        if number > _LAST_MARK - _FIRST_MARK:
            raise TextError("the messages hold too many private-use characters")
        return chr(_FIRST_MARK + number)


def encode_chat(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Ids of a conversation, with BOS once if the model wants it.

    The name of a special token is that token in the template, but plain text in a message: typing
    `<|im_end|>` does not end the user's turn. Raises TextError as `ChatTemplate.render`.
    """
    marks, facts = _Marks(tokenizer), template.probe()
    hidden = [marks.hide(message) for message in facts.arrange(messages)]
    shown = marks.hide(variables or {})

    def render(messages: Sequence[Mapping[str, Any]]) -> str:
        return template.render(
            messages, add_generation_prompt=add_generation_prompt, variables=shown
        )

    text = render(hidden)
    check_kept(hidden, text, render, facts.history)
    if marks.used:
        # A run of text between two special tokens is encoded as one, whatever was hidden in it.
        parts = tokenizer.special_tokens.split(text)
        ids = tokenizer.encode_parts(p if isinstance(p, int) else marks.reveal(p) for p in parts)
    else:
        ids = tokenizer.encode(text, add_bos=False)
    bos = tokenizer.encode("")
    return ids if ids[: len(bos)] == bos else bos + ids
