"""What is known of the boards of a cluster and of the links between them, as plain values.

A file of boards, for `picoedge plan --boards FILE`, is one JSON object:

    {"hub": "desk",                                   (the first board, where there is none)
     "link": {"latency_s": 1e-4, "bytes_per_s": 1.1e8},   (of every pair that `links` leaves out)
     "links": [{"between": ["desk", "shelf"], "latency_s": 1e-3, "bytes_per_s": 3.7e7}, ...],
     "boards": [{"name": "desk", "cores": 4, "compute_bytes_per_s": 4.0e9,
                 "disk_bytes_per_s": 9.0e7, "budget_bytes": 536870912,
                 "fixed_bytes": 62914560}, ...]}

Further keys of a board, with what they are where left out, are the fields of `BoardFacts`. In a
report of a board over the network the same keys stand for the same things. Nothing is believed
before it is checked: unknown keys, wrong types and figures no board has are refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from picoedge.errors import ProtocolError, UsageError
from picoedge.planner.partition import MOST_BOARDS

KEY_CHARS = 40  # of a public key in Z85
_NAME_CHARS = 64
_FILE_CHARS = 1 << 20
_REMEDY = "see the fields of a board in picoedge/engine/cluster_facts.py"


@dataclass(frozen=True)
class BoardFacts:
    """What one board can do, as measured there."""

    name: str
    cores: int
    compute_bytes_per_s: float  # of quantized weights, for one token
    disk_bytes_per_s: float
    budget_bytes: int  # for everything picoedge does there
    fixed_bytes: int  # of that: interpreter, libraries, daemon, and on a hub the tokenizer
    key: str = ""
    prefill_gain: float = 4.0  # tokens of a prompt computed in the time of one token
    read_io: str = "direct"  # or "mmap"
    read_ahead_bytes: int = 0  # what reading takes beside its window
    message_s: float = 100e-6  # of processor time to send or to receive one message
    unit_s: float = 20e-6  # calls and waiting beside the arithmetic, a run of shards
    sampling_s: float = 500e-6  # a token picked and decoded, where the board is the hub
    numpy: bool = False  # the NumPy twin computes

    def to_json(self) -> dict[str, Any]:
        """Plain values; `board_from_json` reads them."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class LinkFacts:
    """The way from one board to another; the way back is the same."""

    latency_s: float  # one way, of a small message
    bytes_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; `link_from_json` reads them."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Cluster:
    """Boards, and the links between them by pairs of their indices, the lower first.

    A pair that is not in `links` has `link`, or without one is taken to meet at the hub's
    switch: as far apart and as fast as the worse of their two links to the hub.
    """

    boards: tuple[BoardFacts, ...]
    links: Mapping[tuple[int, int], LinkFacts] = field(default_factory=dict)
    link: LinkFacts | None = None
    hub: int = 0

    def link_between(self, a: int, b: int) -> LinkFacts:
        """The link of two boards. The hub's links are all known, or `link` is."""
        known = self.links.get((min(a, b), max(a, b)), self.link)
        if known is not None:
            return known
        assert self.hub not in (a, b), "a link of the hub is not known"
        one, other = self.link_between(self.hub, a), self.link_between(self.hub, b)
        return LinkFacts(
            max(one.latency_s, other.latency_s), min(one.bytes_per_s, other.bytes_per_s)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; `cluster_from_json` reads them."""
        names = [board.name for board in self.boards]
        links = [
            {"between": [names[a], names[b]], **link.to_json()}
            for (a, b), link in self.links.items()
        ]
        values: dict[str, Any] = {"hub": names[self.hub], "links": links}
        if self.link is not None:
            values["link"] = self.link.to_json()
        return values | {"boards": [board.to_json() for board in self.boards]}


# Least and largest of every number: (least, largest); a float's least may not be undercut either.
_BOARD_NUMBERS: dict[str, tuple[float, float]] = {
    "cores": (1, 4096),
    "compute_bytes_per_s": (1e3, 1e15),
    "disk_bytes_per_s": (1e3, 1e13),
    "budget_bytes": (0, 1 << 50),
    "fixed_bytes": (0, 1 << 50),
    "prefill_gain": (1, 1e5),
    "read_ahead_bytes": (0, 1 << 40),
    "message_s": (0, 1),
    "unit_s": (0, 1),
    "sampling_s": (0, 10),
}
_LINK_NUMBERS: dict[str, tuple[float, float]] = {"latency_s": (0, 60), "bytes_per_s": (1, 1e13)}
_WHOLE = frozenset({"cores", "budget_bytes", "fixed_bytes", "read_ahead_bytes"})


def board_from_json(values: object, where: str = "a board") -> BoardFacts:
    """The inverse of `BoardFacts.to_json`. Raises ProtocolError naming what is wrong."""
    known = {field.name for field in dataclasses.fields(BoardFacts)}
    needed = ("name", "cores", "compute_bytes_per_s", "disk_bytes_per_s", "budget_bytes")
    given = _object(values, where, known, (*needed, "fixed_bytes"))
    name = _text(given["name"], f"the name of {where}")
    where = f"board {name}"
    checked: dict[str, Any] = {"name": name}
    for key, bounds in _BOARD_NUMBERS.items():
        if key in given:
            checked[key] = _number(given[key], f"{key} of {where}", bounds, key in _WHOLE)
    return BoardFacts(**checked, **_words(given, where))


def _words(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a board that are no numbers."""
    words: dict[str, Any] = {}
    if given.get("key", "") != "":
        words["key"] = _text(given["key"], f"the key of {where}")
        if len(words["key"]) != KEY_CHARS:
            raise ProtocolError(f"the key of {where} is not {KEY_CHARS} characters", _REMEDY)
    if "read_io" in given:
        words["read_io"] = given["read_io"]
        if words["read_io"] not in ("direct", "mmap"):
            raise ProtocolError(f"read_io of {where} is neither direct nor mmap", _REMEDY)
    if "numpy" in given:
        words["numpy"] = given["numpy"]
        if not isinstance(words["numpy"], bool):
            raise ProtocolError(f"numpy of {where} is neither true nor false", _REMEDY)
    return words


def link_from_json(values: object, where: str = "a link") -> LinkFacts:
    """The inverse of `LinkFacts.to_json`. Raises ProtocolError."""
    given = _object(values, where, _LINK_NUMBERS.keys(), tuple(_LINK_NUMBERS))
    latency, rate = (
        _number(given[key], f"{key} of {where}", bounds, False)
        for key, bounds in _LINK_NUMBERS.items()
    )
    return LinkFacts(latency, rate)


def cluster_from_json(values: object) -> Cluster:
    """The inverse of `Cluster.to_json`. Raises ProtocolError."""
    given = _object(values, "the cluster", {"hub", "link", "links", "boards"}, ("boards",))
    listed = _list(given["boards"], "boards", MOST_BOARDS)
    boards = tuple(board_from_json(one, f"board {i + 1}") for i, one in enumerate(listed))
    names = {board.name: i for i, board in enumerate(boards)}
    if not boards or len(names) < len(boards):
        raise ProtocolError("the cluster has no boards, or two of one name", _REMEDY)
    keys = [board.key for board in boards if board.key]
    if len(set(keys)) < len(keys):
        raise ProtocolError("two boards of the cluster have one key", _REMEDY)
    link = link_from_json(given["link"], "the link") if "link" in given else None
    links = dict(
        _pair(one, names) for one in _list(given.get("links", []), "links", MOST_BOARDS**2)
    )
    hub = _index(given.get("hub", boards[0].name), names)
    unknown = [i for i in names.values() if i != hub and (min(i, hub), max(i, hub)) not in links]
    if unknown and link is None:
        raise ProtocolError(
            f"nothing is known of the link between {boards[hub].name} and "
            f"{boards[unknown[0]].name}",
            "add it to links, or a link for every pair",
        )
    return Cluster(boards, links, link, hub)


def read_cluster(text: str, where: str) -> Cluster:
    """The boards of a file's text. Raises UsageError naming the file, `where`, and the fault."""
    try:
        if len(text) > _FILE_CHARS:
            raise ProtocolError("it is longer than any list of boards", _REMEDY)
        return cluster_from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {str(error)[:100]}", _REMEDY) from None
    except ProtocolError as error:
        raise UsageError(f"{where}: {error.message}", error.hint) from None


def _pair(values: object, names: Mapping[str, int]) -> tuple[tuple[int, int], LinkFacts]:
    needed = ("between", *_LINK_NUMBERS)
    given = _object(values, "a link", {*needed}, needed)
    ends = _list(given["between"], "between", 2)
    a, b = sorted(_index(end, names) for end in ends) if len(ends) == 2 else (0, 0)
    if a == b:
        raise ProtocolError("a link is not between two boards", _REMEDY)
    return (a, b), link_from_json({key: given[key] for key in _LINK_NUMBERS})


def _index(name: object, names: Mapping[str, int]) -> int:
    if not isinstance(name, str) or name not in names:
        raise ProtocolError(f"there is no board {str(name)[:_NAME_CHARS]!r}", _REMEDY)
    return names[name]


def _object(values: object, where: str, known: Any, needed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ProtocolError(f"{where} is not an object", _REMEDY)
    missing = [key for key in needed if key not in values]
    if missing:
        raise ProtocolError(f"{where} has no {missing[0]}", _REMEDY)
    extra = next((key for key in values if key not in known), None)
    if extra is not None:
        raise ProtocolError(f"{where} has an unknown {str(extra)[:_NAME_CHARS]!r}", _REMEDY)
    return values


def _list(values: object, where: str, most: int) -> list[Any]:
    if not isinstance(values, list) or len(values) > most:
        raise ProtocolError(f"{where} is not a list of at most {most}", _REMEDY)
    return values


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _NAME_CHARS or not value.isprintable():
        raise ProtocolError(f"{where} is not 1 to {_NAME_CHARS} printable characters", _REMEDY)
    return value


def _number(value: object, where: str, bounds: tuple[float, float], whole: bool) -> float:
    """A number within its bounds, both included; an int where it must be whole."""
    least, largest = bounds
    right = isinstance(value, int) if whole else isinstance(value, (int, float))
    if isinstance(value, bool) or not right:
        raise ProtocolError(f"{where} is no {'whole ' if whole else ''}number", _REMEDY)
    assert isinstance(value, (int, float))
    if not least <= value <= largest or math.isnan(value):
        raise ProtocolError(f"{where} is not within {least:g} and {largest:g}", _REMEDY)
    return value if whole else float(value)
