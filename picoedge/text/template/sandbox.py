"""Jinja environment for chat templates, which come with a model and are not trusted.

Jinja's own sandbox keeps templates from Python's internals. On top of it, filters, methods and
globals are allow-lists, and every loop step, call and new value pays a `Meter` first, so that a
hostile template ends in TextError instead of a hang.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NoReturn

import jinja2
from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace as JinjaNamespace

from picoedge.text.template.filters import (
    check_bits,
    format_growth,
    metered_filters,
    replace_growth,
)
from picoedge.text.template.meter import NODE, Meter, tree_size
from picoedge.text.template.rewrite import Generation, Rewrite

_METHODS: dict[type, tuple[str, ...]] = {
    str: (
        "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum",
        "isalpha", "isdigit", "islower", "isnumeric", "isspace", "isupper", "join", "lower",
        "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
        "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
        "title", "upper",
    ),
    dict: ("get", "items", "keys", "values"),
    list: ("count", "index"),
    tuple: ("count", "index"),
    LoopContext: ("changed", "cycle"),
}  # fmt: skip


class Environment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it, metered; refill `meter` before each rendering."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, meter: Meter) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # else constant expressions are computed at compile time, unmetered
            finalize=_metered_output,
            extensions=[loopcontrols, Generation],
        )
        self.meter = meter
        self.filters = metered_filters(meter, self.filters)
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: meter.stepping(test) for name, test in tests.items()}
        self.globals = {
            "range": self.globals["range"],  # the sandbox's: 100,000 at most
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": _raise_exception,
        }

    def template(self, source: str) -> jinja2.Template:
        """Compile `source`. Raises jinja2.TemplateError."""
        tree = Rewrite().visit(self.parse(source))
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read this attribute: no internals, and listed methods only."""
        if isinstance(obj, type) or not super().is_safe_attribute(obj, attr, value):
            return False
        if not isinstance(value, (types.BuiltinMethodType, types.MethodType)):
            return True
        return any(isinstance(obj, kind) and attr in names for kind, names in _METHODS.items())

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Refuse at once; Jinja would wait until the value is used."""
        raise SecurityError(f"{attribute!r} of a {type(obj).__name__} is not for templates")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` without wide fields, which would make long texts out of short ones."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        inner, template = wrapped, value.__self__

        def checked(*args: Any, **kwargs: Any) -> str:
            self.meter.spend(format_growth(template, args, kwargs))
            return inner(*args, **kwargs)

        return checked

    # Names with underscores cannot collide with a template's keyword arguments.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call from a template, paid for by its arguments and its result."""
        meter = __self.meter
        meter.weigh(args, kwargs)
        if isinstance(__obj, types.BuiltinMethodType):
            meter.spend(_method_growth(__obj, args))
        result = super().call(__context, __obj, *args, **kwargs)
        return result if isinstance(__obj, (BlockReference, Macro)) else meter.hold(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, its size checked before the result exists."""
        if operator == "%" and isinstance(left, str):
            self.meter.spend(format_growth(left, right))
        elif operator == "**":
            check_bits(_bits(left) * abs(int(right)))
        elif operator == "*":
            check_bits(_bits(left) + _bits(right))
            for values, times in ((left, right), (right, left)):
                if not isinstance(values, (int, float)) and isinstance(times, int):
                    self.meter.spend(tree_size(values) * times)
        elif operator == "+" and not isinstance(left, (int, float)):
            self.meter.weigh(left, right)
        else:
            self.meter.spend(NODE)
        return super().call_binop(context, operator, left, right)


class Namespace(JinjaNamespace):
    """`namespace()`; prints as a name, since namespaces may refer to each other in a circle."""

    def __repr__(self) -> str:
        return "<namespace>"


@pass_context  # so that the compiler cannot apply it to constants
def _metered_output(context: Context, value: Any) -> str:
    environment = context.environment
    assert isinstance(environment, Environment)
    return environment.meter.output(value)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _method_growth(method: Any, args: tuple[Any, ...]) -> int:
    """Upper bound of a string method's result beyond a few times its operands, in units."""
    text, name = method.__self__, method.__name__
    if not isinstance(text, str):
        return 0
    if name == "replace" and len(args) > 1:
        return replace_growth(text, *args)
    if name == "join" and args:
        return len(text) * len(args[0])
    if name in ("split", "rsplit", "splitlines"):
        pieces = text.count(args[0]) if args and args[0] else len(text) // 2
        return NODE * (pieces + 1)
    return len(text)
