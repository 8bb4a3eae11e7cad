"""Jinja for chat templates that come with a model and are trusted with nothing.

On top of Jinja's own sandbox, which keeps templates from Python's internals: filters, methods
and globals are lists of what templates use, and everything that loops, calls or makes a value
pays a `Meter` first, so that a hostile template ends in TextError rather than in a hang.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace as JinjaNamespace

from picoedge.text.template.filters import check_bits, metered_filters, replace_growth
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
# Widths of four digits, widths that come as arguments, fields within fields.
_WIDE_FORMAT = re.compile(r"\d{4}|\*|\{[^{}]*\{")


class Environment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it, metered. `meter` is set anew for each rendering."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, meter: Meter) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constant expressions would be computed before the meter runs
            finalize=_metered_output,
            extensions=[loopcontrols, Generation],
        )
        self.meter = meter
        self.filters = metered_filters(self, self.filters)
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: self.stepping(test) for name, test in tests.items()}
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
        """Whether a template may have this attribute: no internals, and listed methods only."""
        if isinstance(obj, type) or not super().is_safe_attribute(obj, attr, value):
            return False
        if not isinstance(value, (types.BuiltinMethodType, types.MethodType)):
            return True
        return any(isinstance(obj, kind) and attr in names for kind, names in _METHODS.items())

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Refuse at once; Jinja would go on until the value is used."""
        raise SecurityError(f"{attribute!r} of a {type(obj).__name__} is not for templates")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, with widths that cannot grow a text out of nothing."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        inner, template = wrapped, value.__self__

        def checked(*args: Any, **kwargs: Any) -> str:
            self.meter.spend(self.format_growth(template, args, kwargs))
            return inner(*args, **kwargs)

        return checked

    # The names of the first arguments keep out of the way of keyword arguments.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call something from a template, paying for its arguments and its result."""
        meter = __self.meter
        meter.weigh(args, kwargs)
        if isinstance(__obj, types.BuiltinMethodType):
            meter.spend(_method_growth(__obj, args))
        result = super().call(__context, __obj, *args, **kwargs)
        return result if isinstance(__obj, (BlockReference, Macro)) else meter.hold(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, with sizes checked before the result exists."""
        if operator == "%" and isinstance(left, str):
            self.meter.spend(self.format_growth(left, right))
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

    def output(self, value: Any) -> str:
        """A value as text."""
        self.meter.weigh(value)
        return self.paid(str(value))

    def paid(self, text: str) -> str:
        """`text`, paid for."""
        self.meter.spend(NODE + len(text))
        return text

    def stepping(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, each call a step paid for."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.meter.spend(NODE)
            return function(*args, **kwargs)

        return call

    def format_growth(self, template: str, *args: Any) -> int:
        """Units that filling in `template` may take. Raises SecurityError for wide fields."""
        if _WIDE_FORMAT.search(template):
            raise SecurityError(f"format {template[:40]!r} is not allowed")
        fields = template.count("{") + template.count("%")
        return len(template) + fields * (tree_size(args) + 1000)


class Namespace(JinjaNamespace):
    """`namespace()`; prints as a name, since namespaces may hold each other in circles."""

    def __repr__(self) -> str:
        return "<namespace>"


@pass_context  # so that the compiler cannot apply it to constants
def _metered_output(context: Context, value: Any) -> str:
    environment = context.environment
    assert isinstance(environment, Environment)
    return environment.output(value)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _method_growth(method: Any, args: tuple[Any, ...]) -> int:
    """Units that a string method's result may take beyond a few times its operands."""
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
