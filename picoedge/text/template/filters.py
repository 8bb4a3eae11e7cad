"""The filters a chat template may use, each paid for before it works."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from picoedge.text.template.meter import NODE

if TYPE_CHECKING:
    from picoedge.text.template.sandbox import Environment

# The first do no work that grows with their operands; the second make an item of each character.
_CHEAP_FILTERS = ("count", "d", "default", "first", "last", "length")
_ITERATING_FILTERS = ("list", "max", "min", "reverse", "sort", "unique")
_FILTERS = (
    "abs", "capitalize", "dictsort", "float", "format", "indent", "int", "items", "join", "lower",
    "map", "reject", "rejectattr", "replace", "select", "selectattr", "string", "title", "trim",
    "upper",
)  # fmt: skip
_MAX_INT_BITS = 4096
_MAX_INDENT = 16


def check_bits(bits: int) -> None:
    """Raise OverflowError for an integer whose arithmetic would take long."""
    if bits > _MAX_INT_BITS:
        raise OverflowError("a number too large")


def replace_growth(text: str, old: str, new: str, *_: Any, **__: Any) -> int:
    """Characters of `text` with `old` replaced, at most."""
    return len(text) + text.count(old) * len(new)


def _filter_growth(env: Environment) -> dict[str, Callable[..., int]]:
    """Units that a filter's work may take beyond a few times its operands, before it is done."""

    def join(values: Any, d: Any = "", attribute: Any = None) -> int:
        return len(str(d)) * len(values)

    def indent(text: str, width: int | str = 4, *_: Any, **__: Any) -> int:
        return (text.count("\n") + 1) * (width if isinstance(width, int) else len(width))

    def characters(values: Any, *_: Any, **__: Any) -> int:
        return NODE * len(values) if isinstance(values, str) else 0

    def number(value: Any, *_: Any, **__: Any) -> int:
        check_bits(4 * len(value) if isinstance(value, str) else 0)  # parsing is quadratic
        return 0

    return {
        "join": join,
        "indent": indent,
        "int": number,
        "replace": replace_growth,
        "format": lambda text, *args, **kwargs: env.format_growth(str(text), args, kwargs),
        **dict.fromkeys(_ITERATING_FILTERS, characters),
    }


def metered_filters(env: Environment, jinja: dict[str, Any]) -> dict[str, Any]:
    """The filters templates may use, metered through `env.meter`."""
    growths = _filter_growth(env)

    def metered(name: str) -> Callable[..., Any]:
        function, growth = jinja[name], growths.get(name)
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0  # an environment or a context

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            operands = args[skip:]
            env.meter.weigh(operands, kwargs)
            if growth is not None:
                env.meter.spend(growth(*operands, **kwargs))
            return env.meter.hold(function(*args, **kwargs))

        return call

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Hugging Face's `tojson`: plain JSON, no HTML escapes."""
        if indent is not None and not 0 <= indent <= _MAX_INDENT:
            raise ValueError(f"indent {indent!r}")
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return "".join(env.paid(piece) for piece in encoder.iterencode(value))

    def escape(value: Any) -> Any:
        return env.meter.hold(str(jinja["escape"](value)))

    return {
        **{name: env.stepping(jinja[name]) for name in _CHEAP_FILTERS},
        **{name: metered(name) for name in (*_FILTERS, *_ITERATING_FILTERS)},
        "e": escape,
        "escape": escape,
        "safe": env.stepping(lambda value: value),
        "tojson": to_json,
        "_concat": lambda *values: "".join(env.output(value) for value in values),
        "_each": lambda values: env.meter.each(values),
        "_hold": lambda value: env.meter.hold(value),
        "_step": env.stepping(lambda value: value),
    }
