"""Filters that a chat template may use, each metered before it works."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from jinja2.exceptions import SecurityError

from picoedge.text.template.meter import NODE, Meter, tree_size

# Filters whose work does not grow with their operands, and those that make an item per character.
_CHEAP_FILTERS = ("count", "d", "default", "first", "last", "length")
_ITERATING_FILTERS = ("list", "max", "min", "reverse", "sort", "unique")
_FILTERS = (
    "abs", "capitalize", "dictsort", "float", "format", "indent", "int", "items", "join", "lower",
    "map", "reject", "rejectattr", "replace", "select", "selectattr", "string", "title", "trim",
    "upper",
)  # fmt: skip
_MAX_INT_BITS = 4096
_MAX_INDENT = 16
# Widths of four digits, widths passed as arguments, fields within fields.
_WIDE_FORMAT = re.compile(r"\d{4}|\*|\{[^{}]*\{")


def check_bits(bits: int) -> None:
    """Raise OverflowError for an integer too large for quick arithmetic."""
    if bits > _MAX_INT_BITS:
        raise OverflowError("a number too large")


def replace_growth(text: str, old: str, new: str, *_: Any, **__: Any) -> int:
    """Upper bound of the length of `text` with `old` replaced by `new`."""
    return len(text) + text.count(old) * len(new)


def format_growth(template: str, *args: Any) -> int:
    """Units that filling in `template` may take. Raises SecurityError for wide fields."""
    if _WIDE_FORMAT.search(template):
        raise SecurityError(f"format {template[:40]!r} is not allowed")
    fields = template.count("{") + template.count("%")
    return len(template) + fields * (tree_size(args) + 1000)


def _filter_growth() -> dict[str, Callable[..., int]]:
    """Upper bound of a filter's work beyond a few times its operands, in units, by name."""

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
        "format": lambda text, *args, **kwargs: format_growth(str(text), args, kwargs),
        **dict.fromkeys(_ITERATING_FILTERS, characters),
    }


def metered_filters(meter: Meter, jinja: dict[str, Any]) -> dict[str, Any]:
    """The filters templates may use; `jinja`: Jinja's own by name."""
    growths = _filter_growth()

    def metered(name: str) -> Callable[..., Any]:
        function, growth = jinja[name], growths.get(name)
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0  # environment or context

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            operands = args[skip:]
            meter.weigh(operands, kwargs)
            if growth is not None:
                meter.spend(growth(*operands, **kwargs))
            return meter.hold(function(*args, **kwargs))

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
        return "".join(meter.paid(piece) for piece in encoder.iterencode(value))

    def escape(value: Any) -> Any:
        return meter.hold(str(jinja["escape"](value)))

    return {
        **{name: meter.stepping(jinja[name]) for name in _CHEAP_FILTERS},
        **{name: metered(name) for name in (*_FILTERS, *_ITERATING_FILTERS)},
        "e": escape,
        "escape": escape,
        "safe": meter.stepping(lambda value: value),
        "tojson": to_json,
        "_concat": lambda *values: "".join(map(meter.output, values)),
        "_each": meter.each,
        "_hold": meter.hold,
        "_step": meter.stepping(lambda value: value),
    }
