"""Checked look-ups in JSON that comes from a file or from another board.

    fields = Fields(json.loads(text), "the session", ProtocolError)
    rank = fields.integer("rank", 1, 63)
    name = fields.object("pack").text("name", 64)

A value that is missing, of a wrong type or out of its bounds raises the error that was given. The
message says where, which field, and what belongs there: "the session: pack.name is not text of at
most 64 characters". No message repeats a value, which may be long or secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from picoedge.errors import ModelError, PicoedgeError, ProtocolError, UnsupportedError

_T = TypeVar("_T")
_D = TypeVar("_D")
_P = ParamSpec("_P")
MAX_TEXT = 2000  # characters: longer than any message or path, shorter than a flood
MAX_INTEGER = (1 << 64) - 1
MAX_NUMBER = 1e300  # an integer above the largest float would raise OverflowError
MAX_ITEMS = 1 << 20
# Values of a document, as `within_values` counts them. One may take 2 bytes of text, and 300 of
# memory (an object of one field): so many take 40 MB.
MOST_VALUES = 1 << 17
_WINDOW = 1 << 16  # bytes of a document that are looked at together
_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")  # also of whole ones: a quick look
_WORDS = {dict: "an object", list: "a list", str: "text", int: "an integer", bool: "true or false"}


class TooManyValuesError(ValueError):
    """A JSON document whose values would take far more memory than its bytes."""


def parse_json(data: str | bytes | bytearray, most_values: int = MOST_VALUES) -> Any:
    """The value in a JSON document of UTF-8. Raises ValueError, RecursionError for anything else.

    Also for half a character (a lone surrogate), which JSON can name, and nothing can write, and,
    before it is parsed, TooManyValuesError for one of more than `most_values`.
    """
    check_values(data, most_values)
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    value = json.loads(text)
    if _HALF.search(text):
        require_whole(value)
    return value


def check_values(data: str | bytes | bytearray, most: int = MOST_VALUES) -> None:
    """Raises TooManyValuesError for a JSON document of more than `most` values."""
    if within_values(data, most) < len(data):
        raise TooManyValuesError(f"holds more than {most} values")


def within_values(data: str | bytes | bytearray, most: int) -> int:
    """Length of the part of a JSON document that holds at most `most` values; all where it can.

    Brackets that open and commas are counted, but not in texts: each list, object, item and field
    has one before it.
    """
    if _marks(data) <= most:  # a quick look: texts may have some as well
        return len(data)
    count, in_text, rest = 0, False, b""
    for at in range(0, len(data), _WINDOW):
        piece = data[at : at + _WINDOW]
        raw = piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else piece
        raw = (rest + raw).replace(b"\\\\", b"").replace(b'\\"', b"")  # what is left ends texts
        rest = raw[-1:] if raw.endswith(b"\\") else b""
        parts = raw.split(b'"')
        count += _marks(b"".join(parts[in_text::2]))
        in_text ^= len(parts) % 2 == 0
        if count > most:
            return at
    return len(data)


def _marks(data: str | bytes | bytearray) -> int:
    if isinstance(data, str):
        return sum(map(data.count, "[{,"))
    return sum(map(data.count, (b"[", b"{", b",")))


def require_whole(value: Any) -> None:
    """Raises ValueError where a JSON value has half a character in it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half a character in a text") from None


class Fields:
    """One JSON object.

    `where` (a path, "the session") and `prefix` ("layers.3.") say in messages where it was found;
    `error` is raised with `hint`, the remedy.
    """

    __slots__ = ("error", "hint", "prefix", "values", "where")

    def __init__(
        self, values: Any, where: object = "", error: type[PicoedgeError] = ProtocolError,
        hint: str = "", prefix: str = "",
    ) -> None:  # fmt: skip
        self.where, self.error, self.hint, self.prefix = where, error, hint, prefix
        if not isinstance(values, dict):
            raise error(f"{self._place() or 'a message'} is not an object", hint)
        self.values: Mapping[str, Any] = values

    def _place(self, name: str = "") -> str:
        inside = f"{self.prefix}{name}".rstrip(".")
        return f"{self.where}: {inside}" if self.where and inside else f"{self.where or inside}"

    def fault(self, name: str, expected: str = "") -> PicoedgeError:
        """The error for field `name`, which is missing or not as `expected`."""
        if name.partition(" ")[0] not in self.values:
            return self.error(f"{self._place(name)} is missing", self.hint)
        what = f"is not {expected}" if expected else "is damaged"
        return self.error(f"{self._place(name)} {what}", self.hint)

    def only(self, known: Collection[str]) -> Fields:
        """Itself; raises where it has a field that is not `known`."""
        extra = next((name for name in self.values if name not in known), None)
        if extra is not None:
            raise self.error(f"{self._place()} has an unknown {extra[:64]!r}".lstrip(), self.hint)
        return self

    def get(self, name: str, kind: type[_T], default: _T | None = None) -> _T:
        """The value, of exactly this type; `default`, if one is given, where missing or null."""
        value: Any = self.values.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not kind:
            raise self.fault(name, _WORDS[kind])
        if kind is int and abs(self.values[name]) > MAX_INTEGER:  # larger ones overflow in products
            raise self.fault(name, f"an integer of at most {MAX_INTEGER}")
        return value

    def text(
        self, name: str, longest: int = MAX_TEXT, pattern: re.Pattern[str] | None = None,
        expected: str = "",
    ) -> str:  # fmt: skip
        """Text of at most `longest` characters that `pattern` matches whole."""
        value: Any = self.values.get(name)
        sized = type(value) is str and len(value) <= longest
        if not sized or (pattern and not pattern.fullmatch(value)):
            raise self.fault(name, expected or f"text of at most {longest} characters")
        return str(value)

    def integer(self, name: str, least: int = 0, most: int = MAX_INTEGER) -> int:
        """An integer from `least` to `most`."""
        value: Any = self.values.get(name)
        if type(value) is not int or not least <= value <= most:
            raise self.fault(name, f"an integer from {least} to {most}")
        return value

    def number(self, name: str, least: float, most: float) -> float:
        """An integer or a float from `least` to `most`, as a float."""
        value: Any = self.values.get(name)
        if type(value) not in (int, float) or not least <= value <= most:  # NaN is neither
            raise self.fault(name, f"a number from {least:g} to {most:g}")
        return float(value)

    def positive(self, name: str, default: float | None = None) -> float:
        """A number above zero; `default`, if one is given, where missing or null."""
        value: Any = self.values.get(name)
        value = default if value is None else value
        if type(value) not in (int, float) or not 0 < value < MAX_NUMBER:
            raise self.fault(name, "a number above zero")
        return float(value)

    def one_of(self, name: str, choices: Iterable[_T]) -> _T:
        """One of `choices`, of the same type (1 is not True)."""
        value: Any = self.values.get(name)
        for choice in choices:
            if type(choice) is type(value) and choice == value:
                return choice
        raise self.fault(name, f"one of {', '.join(repr(choice) for choice in choices)}")

    def array(self, name: str, most: int = MAX_ITEMS) -> list[Any]:
        """A list of at most `most` values of any kind."""
        value: Any = self.values.get(name)
        if type(value) is not list or len(value) > most:
            raise self.fault(name, f"a list of at most {most}")
        return value

    def texts(self, name: str, most: int, longest: int = MAX_TEXT) -> tuple[str, ...]:
        """A list of at most `most` texts, each of at most `longest` characters."""
        values = self.array(name, most)
        if not all(type(value) is str and len(value) <= longest for value in values):
            raise self.fault(name, f"a list of texts of at most {longest} characters")
        return tuple(values)

    def span(self, name: str, most: int) -> range:
        """A range of shards as [first, one past the last], within 0 and `most`."""
        ends: Any = self.values.get(name)
        right = type(ends) is list and len(ends) == 2 and all(type(end) is int for end in ends)
        if not right or not 0 <= ends[0] <= ends[1] <= most:
            raise self.fault(name, f"[first, end] within 0 and {most}")
        return range(*ends)

    def object(self, name: str) -> Fields:
        """The object in a field."""
        if name not in self.values:
            raise self.fault(name)
        return self._inside(name, self.values[name])

    def objects(self, name: str, most: int = MAX_ITEMS) -> list[Fields]:
        """The objects in a list of at most `most`."""
        return [self._inside(f"{name}.{i}", v) for i, v in enumerate(self.array(name, most))]

    def _inside(self, name: str, values: Any) -> Fields:
        return Fields(values, self.where, self.error, self.hint, f"{self.prefix}{name}.")

    def build(self, name: str, make: Callable[[], _T]) -> _T:
        """The result of `make`; its ModelError is reported as a fault of field `name`."""
        try:
            return make()
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.where}: {error.message}", error.hint) from error
        except ModelError as error:
            raise self.fault(f"{name} ({error.message})") from error


def or_else(default: _D, read: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | _D:
    """`read(...)`, or `default` where that raises: for displays, which show what they can.

    or_else(0, report.integer, "queue_length")
    """
    try:
        return read(*args, **kwargs)
    except PicoedgeError:
        return default
