"""Facts of the boards of a cluster and of the links between them, and their JSON.

A file of boards, for `picoedge plan --boards FILE`, is one JSON object:

    {"hub": "desk",                                   (the first board, where there is none)
     "link": {"latency_s": 1e-4, "bytes_per_s": 1.1e8},   (of every pair that `links` leaves out)
     "links": [{"between": ["desk", "shelf"], "latency_s": 1e-3, "bytes_per_s": 3.7e7}, ...],
     "boards": [{"name": "desk", "cores": 4, "compute_bytes_per_s": 4.0e9,
                 "disk_bytes_per_s": 9.0e7, "budget_bytes": 536870912,
                 "fixed_bytes": 62914560}, ...]}

Further keys of a board, and their defaults, are the fields of `BoardFacts`; reports of boards over
the network have the same keys. Unknown keys, wrong types and impossible figures are refused.

What a session measures of a link outlasts it (`remembered`): others disturb a measurement, and no
round trip is shorter than its link.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from picoedge.errors import ProtocolError, UsageError
from picoedge.fields import Fields, parse_json

MOST_BOARDS = 64
KEY_CHARS = 40  # of a public key in Z85
_NAME_CHARS = 64
_FILE_CHARS = 1 << 20
_KEY = re.compile(rf"[!-~]{{{KEY_CHARS}}}")
_LINK_KEYS = ("latency_s", "bytes_per_s")
_NEEDED = (
    "name", "cores", "compute_bytes_per_s", "disk_bytes_per_s", "budget_bytes", "fixed_bytes",
)  # fmt: skip
_REMEDY = f"a board has {', '.join(_NEEDED)}; a link between, {', '.join(_LINK_KEYS)}"


@dataclass(frozen=True)
class BoardFacts:
    """Speeds and memory of one board, as measured there."""

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
    numpy: bool = False  # the NumPy backend computes
    disk_free_bytes: int = 1 << 60  # where packs are kept; by default, as if there were no end
    disk_free_files: int = 1 << 60


@dataclass(frozen=True)
class LinkFacts:
    """Latency and rate from one board to another, the same in both directions."""

    latency_s: float  # one way, of a small message
    bytes_per_s: float


@dataclass(frozen=True)
class RoundTrips:
    """Seconds to a board and back, as one session measured them: of nothing, and of many bytes."""

    at_s: float  # when, by the clock on the wall
    small_s: float
    large_s: float


TRIPS_KEPT_S = 3600.0  # a network that got quicker is known as such at once, one that got slower …
TRIPS_CHANGED = 3.0  # … when the last ones are all so many times longer than the best before,
TRIPS_LAST = 3  # which are so many, or when the best is that old
TRIPS_MOST = 16  # of one link


def remembered(before: Sequence[RoundTrips], new: RoundTrips) -> list[RoundTrips]:
    """Round trips of a link to keep when a `new` one was measured, the oldest first."""
    recent = [one for one in before if 0 <= new.at_s - one.at_s <= TRIPS_KEPT_S][1 - TRIPS_MOST :]
    earlier, last = [*recent, new][:-TRIPS_LAST], [*recent, new][-TRIPS_LAST:]
    if earlier:
        (small_s, large_s), (small_now_s, large_now_s) = shortest(earlier), shortest(last)
        is_slower = small_now_s > TRIPS_CHANGED * small_s or large_now_s > TRIPS_CHANGED * large_s
        return last if is_slower else [*earlier, *last]
    return last


def shortest(trips: Sequence[RoundTrips]) -> tuple[float, float]:
    """The shortest round trips of nothing, and of many bytes: the least disturbed ones."""
    return min(one.small_s for one in trips), min(one.large_s for one in trips)


def link_of(small_s: float, large_s: float, own_s: float, nbytes: int) -> LinkFacts:
    """Latency and rate of a link, from round trips of nothing and of `nbytes`, in seconds.

    `own_s` is a round trip to this board's own daemon: what a daemon itself takes.
    """
    latency_s = min(max(0.0, small_s - own_s) / 2, 60.0)
    return LinkFacts(latency_s, nbytes / max(large_s - small_s, 1e-6))


def trips_to_json(trips: Sequence[RoundTrips]) -> list[dict[str, float]]:
    """Round trips as JSON, for `trips_from_json`."""
    return [dataclasses.asdict(one) for one in trips]


def trips_from_json(fields: Fields, name: str) -> list[RoundTrips]:
    """Round trips, checked. Raises ProtocolError naming the field."""
    return [
        RoundTrips(
            each.number("at_s", 0, 1e12),
            each.number("small_s", 0, 1e3),
            each.number("large_s", 0, 1e3),
        )
        for each in fields.objects(name, TRIPS_MOST)
    ]


@dataclass(frozen=True)
class Topology:
    """Boards, and the links between them by pairs of their indices, the lower first.

    A pair that is not in `links` has `link`; without one the two are assumed to meet at the hub's
    switch, with the worse latency and rate of their two links to the hub. Pairs in `unlinked`
    cannot reach each other: their sums go by way of the hub.
    """

    boards: tuple[BoardFacts, ...]
    links: Mapping[tuple[int, int], LinkFacts] = field(default_factory=dict)
    link: LinkFacts | None = None
    hub: int = 0
    unlinked: frozenset[tuple[int, int]] = frozenset()

    def are_linked(self, boards: Sequence[int]) -> bool:
        """Whether each of these boards can reach each other one."""
        return not any(pair in self.unlinked for pair in combinations(sorted(boards), 2))

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

    def with_speeds(self, speeds: Iterable[float]) -> Topology:
        """The same, where boards compute so many bytes of quantized weights a second."""
        pairs = zip(self.boards, speeds, strict=True)
        boards = (dataclasses.replace(board, compute_bytes_per_s=speed) for board, speed in pairs)
        return dataclasses.replace(self, boards=tuple(boards))


# Bounds of every number of a board: no real board is outside them.
_BOUNDS: dict[str, tuple[Callable[[Fields, str, int, int], float], int, int]] = {
    "compute_bytes_per_s": (Fields.number, 10**3, 10**15),
    "disk_bytes_per_s": (Fields.number, 10**3, 10**13),
    "prefill_gain": (Fields.number, 1, 10**5),
    "message_s": (Fields.number, 0, 1),
    "unit_s": (Fields.number, 0, 1),
    "sampling_s": (Fields.number, 0, 10),
    "cores": (Fields.integer, 1, 4096),
    "budget_bytes": (Fields.integer, 0, 1 << 50),
    "fixed_bytes": (Fields.integer, 0, 1 << 50),
    "read_ahead_bytes": (Fields.integer, 0, 1 << 40),
    "disk_free_bytes": (Fields.integer, 0, 1 << 60),
    "disk_free_files": (Fields.integer, 0, 1 << 60),
}


def board_from_json(values: object, where: str = "a board") -> BoardFacts:
    """A board's facts, checked. Raises ProtocolError naming the field."""
    return _board(Fields(values, where, hint=_REMEDY))


def _board(fields: Fields) -> BoardFacts:
    fields.only([field.name for field in dataclasses.fields(BoardFacts)])
    given = {*_NEEDED, *fields.values}
    checked: dict[str, Any] = {"name": fields.text("name", _NAME_CHARS)}
    if not checked["name"] or not checked["name"].isprintable():
        raise fields.fault("name", f"1 to {_NAME_CHARS} printable characters")
    for key, (read, least, most) in _BOUNDS.items():
        if key in given:
            checked[key] = read(fields, key, least, most)
    if fields.get("key", str, ""):
        checked["key"] = fields.text("key", KEY_CHARS, _KEY, f"{KEY_CHARS} printable characters")
    if "read_io" in given:
        checked["read_io"] = fields.one_of("read_io", ("direct", "mmap"))
    if "numpy" in given:
        checked["numpy"] = fields.get("numpy", bool)
    return BoardFacts(**checked)


def _link(fields: Fields) -> LinkFacts:
    return LinkFacts(fields.number("latency_s", 0, 60), fields.number("bytes_per_s", 1, 1e13))


def topology_from_json(values: object) -> Topology:
    """The boards and links of a file's JSON. Raises ProtocolError naming the field."""
    fields = Fields(values, "the cluster", hint=_REMEDY).only(("hub", "link", "links", "boards"))
    boards = tuple(map(_board, fields.objects("boards", MOST_BOARDS)))
    names = {board.name: i for i, board in enumerate(boards)}
    if not boards or len(names) < len(boards):
        raise ProtocolError("the cluster has no boards, or two of one name", _REMEDY)
    keys = [board.key for board in boards if board.key]
    if len(set(keys)) < len(keys):
        raise ProtocolError("two boards of the cluster have one key", _REMEDY)
    link = _link(fields.object("link").only(_LINK_KEYS)) if "link" in fields.values else None
    listed = fields.objects("links", MOST_BOARDS**2) if "links" in fields.values else []
    links = dict(_pair(each, names) for each in listed)
    hub = _index(fields.values.get("hub", boards[0].name), names)
    unknown = [i for i in names.values() if i != hub and (min(i, hub), max(i, hub)) not in links]
    if unknown and link is None:
        raise ProtocolError(
            f"nothing is known of the link between {boards[hub].name} and "
            f"{boards[unknown[0]].name}",
            "add it to links, or a link for every pair",
        )
    return Topology(boards, links, link, hub)


def read_topology(text: str, where: str) -> Topology:
    """The boards in the text of file `where`. Raises UsageError naming the file and the fault."""
    try:
        if len(text) > _FILE_CHARS:
            raise ProtocolError("it is longer than any list of boards", _REMEDY)
        return topology_from_json(parse_json(text))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {str(error)[:100]}", _REMEDY) from None
    except ProtocolError as error:
        raise UsageError(f"{where}: {error.message}", error.hint) from None


def _pair(fields: Fields, names: Mapping[str, int]) -> tuple[tuple[int, int], LinkFacts]:
    ends = fields.only(("between", *_LINK_KEYS)).array("between", 2)
    a, b = sorted(_index(end, names) for end in ends) if len(ends) == 2 else (0, 0)
    if a == b:
        raise ProtocolError("a link is not between two boards", _REMEDY)
    return (a, b), _link(fields)


def _index(name: object, names: Mapping[str, int]) -> int:
    if not isinstance(name, str) or name not in names:
        raise ProtocolError(f"there is no board {str(name)[:_NAME_CHARS]!r}", _REMEDY)
    return names[name]
