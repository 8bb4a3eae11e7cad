"""Jinja environment for chat templates, which come with a model and are not trusted.

Jinja's own sandbox keeps templates from Python's internals. On top of it, filters, methods and
globals are allow-lists, and every loop step, call and new value pays a `Meter` first, so that a
hostile template ends in TextError instead of a hang.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace as JinjaNamespace
from jinja2.visitor import NodeTransformer

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
_REFUSED = (
    nodes.EvalContextModifier, nodes.Extends, nodes.FromImport, nodes.Import, nodes.Include,
)  # fmt: skip
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


class Rewrite(NodeTransformer):
    """Inserts metering filters where compiled templates would otherwise work unmetered."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if isinstance(node, _REFUSED) or (isinstance(node, nodes.For) and node.recursive):
            what = "a recursive loop" if isinstance(node, nodes.For) else type(node).__name__
            raise SecurityError(f"line {node.lineno}: {what} is not supported")
        self.generic_visit(node)
        match node:
            case nodes.TemplateData():
                return nodes.Const(node.data, lineno=node.lineno)
            case nodes.For():
                node.iter = _filtered(node.iter, "_each")
            case nodes.Compare():
                node.expr = _filtered(node.expr, "_step")
            case nodes.Concat():
                return _filtered(node.nodes[0], "_concat", node.nodes[1:])
            case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load"):
                return _filtered(node, "_hold")
            case nodes.Getitem(arg=nodes.Slice()):
                return _filtered(node, "_hold")
        return node


def _filtered(node: nodes.Node, name: str, args: list[nodes.Expr] | None = None) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, args or [], [], None, None, lineno=node.lineno)


def read_variables(tree: nodes.Template) -> frozenset[str]:
    """Names that a template reads from outside.

    A name that it also sets is one only where it asks whether that is defined: Jinja would read it
    from outside wherever a branch may not have set it.
    """
    names = tree.find_all(nodes.Name)
    stored = {name.name for name in names if name.ctx == "store"}
    asking: list[nodes.Test | nodes.Filter] = [
        *(test for test in tree.find_all(nodes.Test) if test.name in ("defined", "undefined")),
        *(filter for filter in tree.find_all(nodes.Filter) if filter.name in ("default", "d")),
    ]
    asked = {node.node.name for node in asking if isinstance(node.node, nodes.Name)}
    return frozenset(find_undeclared_variables(tree) - (stored - asked))


class Generation(Extension):
    """`{% generation %}`, which marks assistant text for training; has no effect here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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
