"""Mutations of bytes, of JSON values and of texts. All choices come from the `Random` handed in."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from random import Random
from typing import Any

MOST_BYTES = 1 << 20  # of an input that a mutation has made longer
WIDTHS = (1, 2, 4, 8)
EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255)
# Numbers that JSON has and Python's writer does not make, or not from a number.
LITERALS = (b"NaN", b"-Infinity", b"1e999", b"-0", b"1E+2", b"9" * 400, b"9" * 5000)
NUMBERS: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    3,
    7,
    31,
    32,
    64,
    127,
    255,
    256,
    1 << 15,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 53),
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
    1 << 64,
    10**30,
    -(1 << 31),
    -(1 << 63),
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e300,
    1e308,
    -1e308,
    True,
    False,
    None,
)
TEXTS = (
    "",
    " ",
    "\n",
    "\0",
    "a",
    "/",
    "..",
    "../../etc/passwd",
    "\x1b[31m",
    "\u202e",
    "\ud800",
    "é",
    "日本",
    "🙂",
    "<s>",
    "</s>",
    "%s",
    "{{",
    "{% for x in range(9**9) %}",
    "0",
    "-1",
    "1e999",
    "NaN",
    "a" * 100,
    "a" * 5000,
    "ab" * 40000,
    "\U000f0000",
    "model",
    "weight",
    "127.0.0.1:7433",
    "[::1]:7433",
)


def mutate_bytes(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Some edits of `data`: bits, integers, spans removed, repeated or taken from `others`."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        _edit(rng, out, others)
    return bytes(out[:MOST_BYTES])


def _edit(rng: Random, out: bytearray, others: Sequence[bytes]) -> None:
    at, what = rng.randrange(len(out) + 1), rng.randrange(8)
    end = min(len(out), at + rng.choice((1, 2, 4, 8, 16, 64, 256)))
    if what == 0 and at < len(out):
        out[at] ^= 1 << rng.randrange(8)
    elif what == 1 and at < len(out):
        out[at] = rng.choice(EDGES)
    elif what == 2:
        width = rng.choice(WIDTHS)
        number = rng.choice(
            (0, 1, 2, 255, (1 << 8 * width) - 1, 1 << (8 * width - 1), rng.getrandbits(16))
        )
        out[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    elif what == 3:
        del out[at:end]
    elif what == 4:
        out[at:at] = out[at:end] * rng.choice((1, 1, 2, 50))
    elif what == 5:
        out[at:at] = rng.randbytes(end - at)
    elif what == 6 and others:
        other = rng.choice(others)
        start = rng.randrange(len(other) + 1)
        out[at:end] = other[start : start + rng.choice((4, 16, 64, 1024))]
    elif what == 7:
        del out[at:]


def mutate_value(rng: Random, value: Any, names: Sequence[str] = ()) -> Any:
    """A JSON value with one to three of its parts replaced, removed, added or moved.

    `names` are keys that a parser knows, to be added where they are missing.
    """
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _mutate_once(rng, value, names)
    return value


def _mutate_once(rng: Random, value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        what = rng.randrange(10)
        if what == 0:
            return {k: v for k, v in value.items() if k != key}
        if what == 1:
            name = rng.choice(names) if names and rng.random() < 0.7 else rng.choice(TEXTS)
            return {**value, name: any_value(rng)}
        if what == 2:
            return {**value, key: value[rng.choice(list(value))]}
        return {**value, key: _mutate_once(rng, value[key], names)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at, what = rng.randrange(len(value)), rng.randrange(8)
        if what == 0:
            return value[:at] + value[at + 1 :]
        if what == 1:
            return value[: at + 1] + value[at : at + 1] * rng.choice((1, 2, 500)) + value[at + 1 :]
        if what == 2:
            return [*value[:at], any_value(rng), *value[at:]]
        return [*value[:at], _mutate_once(rng, value[at], names), *value[at + 1 :]]
    if isinstance(value, (int, float)) and rng.random() < 0.7:
        return rng.choice((value + 1, value - 1, value * 2, -value, rng.choice(NUMBERS)))
    if isinstance(value, str) and rng.random() < 0.7:
        return mutate_text(rng, value)
    return any_value(rng)


def any_value(rng: Random, depth: int = 0) -> Any:
    """Any JSON value, seldom deep."""
    what = rng.randrange(12)
    if what < 5:
        return rng.choice(NUMBERS)
    if what < 9 or depth > 3:
        return rng.choice(TEXTS)
    if what == 9:
        return [any_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 5)))]
    if what == 10:
        return {rng.choice(TEXTS): any_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 3)))}
    nested: Any = []
    for _ in range(rng.choice((10, 40, 2000))):
        nested = [nested]
    return nested


def mutate_text(rng: Random, text: str, parts: Sequence[str] = TEXTS) -> str:
    """A text with spans removed, repeated, moved, or `parts` put in."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(text) + 1)
        end = min(len(text), at + rng.choice((1, 2, 5, 20, 100)))
        what = rng.randrange(5)
        if what == 0:
            text = text[:at] + text[end:]
        elif what == 1:
            text = text[:at] + text[at:end] * rng.choice((2, 3, 30)) + text[end:]
        elif what == 2:
            text = text[:at] + rng.choice(parts) + text[at:]
        elif what == 3:
            text = text[:at] + rng.choice(parts) + text[end:]
        else:
            to = rng.randrange(len(text) + 1)
            text = text[:at] + text[to : to + 30] + text[end:]
    return text[:MOST_BYTES]


def to_json(value: Any, *, escaped: bool = False) -> bytes:
    """JSON as a hostile writer has it: any number, half characters, any depth.

    `escaped`: half characters are valid UTF-8 then, and reach what reads the values.
    """
    try:
        return json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b"[" * 5000 + b"]" * 5000


def mutate_json(rng: Random, data: bytes, names: Sequence[str] = ()) -> bytes:
    """A JSON file with changed values; one time in six its bytes are changed instead."""
    if rng.randrange(6) == 0:
        return mutate_bytes(rng, data)
    return written(rng, mutate_value(rng, json.loads(data), names))


CROWDS = (b"[]", b"{}", b"[[[[]]]]", b'{"a":{}}', b'"ab"', b'""', b"1.5", b"1", '"é🙂"'.encode())


def crowd(rng: Random, most_bytes: int) -> bytes:
    """A JSON list of many small values, which take far more memory than their bytes."""
    each = rng.choice(CROWDS) + b","
    return b"[" + each * (rng.randrange(most_bytes) // len(each)) + b"0]"


def written(rng: Random, value: Any) -> bytes:
    """`value` as JSON, in one of the ways that JSON can be written."""
    data = to_json(value, escaped=rng.randrange(2) == 0)
    what = rng.randrange(20)
    if what == 0 and data.startswith(b"{"):
        data = b'{"a":1,"a":2,' + data[1:]
    elif what == 1 and (numbers := list(re.finditer(rb"(?<=[:,\[ ])-?\d[\d.e+-]*", data[:4096]))):
        found = rng.choice(numbers)
        data = data[: found.start()] + rng.choice(LITERALS) + data[found.end() :]
    return data[:MOST_BYTES]
