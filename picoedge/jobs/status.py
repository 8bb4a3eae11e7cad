"""The state of the cluster as this board's daemon reports it, typed: for `ps`, `top`, the page.

A daemon keeps of what another board reports of itself the fields that `read_report` knows, each
within its bounds: a malformed field counts as not sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from picoedge.errors import ProtocolError
from picoedge.fields import Fields, or_else
from picoedge.jobs.progress_page import Work
from picoedge.jobs.spec import SESSION
from picoedge.mesh.node.finder import MAX_BOARDS
from picoedge.mesh.transport.client import ask_pages
from picoedge.sanitize import one_line

if TYPE_CHECKING:
    from picoedge.mesh.transport.client import Client

PRESENT = ("alive", "slow")  # conditions of boards whose reports are of now
PAGES = ("mesh-state", "boards", MAX_BOARDS)  # what a daemon is asked, page by page
STATE_S = 2.0  # the own daemon answers in milliseconds; this allows for a stalled card
# Of boards in one answer to `mesh-state`: below a message's limit by more than one board takes.
PAGE_BYTES = 768 << 10
_MAX_COUNT = 1 << 62  # beyond any count here, and within 64 bits
_MAX_TEXT = 200  # characters
_MAX_WORD = 48  # characters of a stage, a condition, a board's name
_MAX_MODEL = 128  # characters; a name on the shelf has 80 at most
_MAX_USES = 8  # a daemon gives its memory to three at most
_SPANS = ("attention", "ffn", "head_shards")
_WORDS = ("does", "state", "holder", "holder_key", "stalled_on", "transport")
_OUTPUT = {"head_shards": "vocabulary"}  # what `--json` calls a field of another name
_COUNTS = ("rss_bytes", "memory_bytes", "queue_length")
_FLAGS = ("throttled", "relayed")
_WORK_TIMES = ("compute_s", "sync_s", "disk_s")


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a board: what for, how much, for which board, and since how long."""

    use: str  # "answer", "kept", "training"
    bytes: int
    holder: str
    model: str
    age_s: float


@dataclass(frozen=True)
class BoardState:
    """One board. None and "" mean unknown."""

    name: str
    key: str
    condition: str  # "alive", "slow", "dead", "left"
    address: str
    does: str = ""  # "free", "hub", "taken", or the stage of its worker
    how: str = ""  # state of its worker's threads: "running", "disk", "stopped"
    holder: str = ""  # the board whose job it runs
    model: str = ""
    attention: range | None = None
    ffn: range | None = None
    head_shards: range | None = None
    used_bytes: int | None = None
    budget_bytes: int | None = None
    temperature_c: float | None = None
    throttled: bool = False
    relayed: bool = False  # its daemon passes messages on: its worker cannot be reached
    transport: str = ""  # of its messages to the hub: "stream", "zeromq", "relay"
    waiting: int = 0  # jobs in its queue
    work: Work | None = None
    uses: tuple[MemoryUse, ...] = ()  # of its memory, beside the daemon's own

    def to_json(self) -> dict[str, Any]:
        """Plain values; spans of shards are [first, one past the last]."""
        values = asdict(self)
        for name in _SPANS:
            shards: range | None = values[name]
            values[name] = None if shards is None else [shards.start, shards.stop]
        return {_OUTPUT.get(name, name): value for name, value in values.items()}


@dataclass(frozen=True)
class MeshState:
    """Every board of the cluster that this one knows of, this one first."""

    cluster: str
    boards: tuple[BoardState, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"cluster": self.cluster, "boards": [board.to_json() for board in self.boards]}


def ask_mesh(daemon: Client) -> MeshState:
    """The state of the cluster now. Raises MeshError."""
    return read_mesh(ask_pages(daemon, *PAGES, STATE_S))


def page_of(boards: Sequence[Mapping[str, Any]], first: int) -> dict[str, Any]:
    """The boards from index `first` on that one answer has room for, and the `next` index."""
    page: list[Mapping[str, Any]] = []
    nbytes = 0
    for board in boards[first:]:
        nbytes += len(json.dumps(board, ensure_ascii=False).encode())
        if page and nbytes > PAGE_BYTES:
            return {"boards": page, "next": first + len(page)}
        page.append(board)
    return {"boards": page}


def read_mesh(body: Mapping[str, Any]) -> MeshState:
    """The daemon's answer, typed. Raises ProtocolError if it lists no boards."""
    fields = Fields(body, "the state of the mesh")
    boards = fields.objects("boards", MAX_BOARDS)
    if not boards:
        raise ProtocolError("a state of the mesh without boards")
    first, *others = map(_board, boards)
    others.sort(key=lambda board: board.name)
    return MeshState(_text(fields, "cluster"), (first, *others))


def _board(board: Fields) -> BoardState:
    report = or_else(Fields({}), board.object, "report")
    addresses = or_else([], board.array, "addresses")
    return BoardState(
        _text(board, "name"),
        _text(board, "key"),
        _text(board, "condition"),
        str(addresses[0]) if addresses else "",
        does=_text(report, "does"),
        how=_text(report, "state"),
        holder=_text(report, "holder"),
        model=_text(report, "model"),
        **{name: or_else(None, report.span, name, _MAX_COUNT) for name in _SPANS},
        used_bytes=_count(report, "rss_bytes"),
        budget_bytes=_count(report, "memory_bytes"),
        temperature_c=or_else(None, report.number, "temperature_c", -_MAX_COUNT, _MAX_COUNT),
        throttled=report.values.get("throttled") is True,
        relayed=report.values.get("relayed") is True,
        transport=_text(report, "transport"),
        waiting=_count(report, "queue_length") or 0,
        work=read_work(report.values),
        uses=tuple(map(_use, or_else([], report.objects, "uses", _MAX_USES))),
    )


def read_report(values: Mapping[str, Any]) -> dict[str, Any]:
    """The known fields of a board's report of itself, each checked and bounded; no others.

    Nothing is raised: a field of a later version is left out, as is a malformed one.
    """
    fields = Fields(values)
    kept = {name: or_else(None, read, fields, name) for name, read in _REPORT.items()}
    return {name: value for name, value in kept.items() if value is not None}


def _word(fields: Fields, name: str) -> str:
    return one_line(fields.get(name, str), _MAX_WORD)


def _ends(fields: Fields, name: str) -> list[int]:
    span = fields.span(name, _MAX_COUNT)
    return [span.start, span.stop]


def _work(fields: Fields, name: str) -> dict[str, Any] | None:
    work = read_work(fields.values)
    return None if work is None else asdict(work)


def _uses(fields: Fields, name: str) -> list[dict[str, Any]]:
    return [asdict(_use(each)) for each in fields.objects(name, _MAX_USES)]


def _use(use: Fields) -> MemoryUse:
    what, holder, model = (or_else("", _word, use, name) for name in ("use", "holder", "model"))
    age_s = or_else(0.0, use.number, "age_s", 0, _MAX_COUNT)
    return MemoryUse(what, _count(use, "bytes") or 0, holder, model, age_s)


_REPORT: Mapping[str, Callable[[Fields, str], Any]] = {
    **dict.fromkeys(_WORDS, _word),
    "model": lambda fields, name: one_line(fields.get(name, str), _MAX_MODEL),
    "holder_session": lambda fields, name: fields.text(name, pattern=SESSION),
    **dict.fromkeys(_SPANS, _ends),
    **dict.fromkeys(_COUNTS, lambda fields, name: fields.integer(name, 0, _MAX_COUNT)),
    **dict.fromkeys(_FLAGS, lambda fields, name: fields.get(name, bool)),
    "temperature_c": lambda fields, name: fields.number(name, -_MAX_COUNT, _MAX_COUNT),
    "work": _work,
    "uses": _uses,
}


def read_work(report: Mapping[str, Any]) -> Work | None:
    """Work done by a worker, from its daemon's report; None if the report does not say."""

    def read() -> Work:
        work = Fields(report).object("work")
        seconds = [work.number(name, -_MAX_COUNT, _MAX_COUNT) for name in _WORK_TIMES]
        return Work(work.integer("tokens", 0, _MAX_COUNT), *seconds)

    return or_else(None, read)


def _text(fields: Fields, name: str) -> str:
    return one_line(or_else("", fields.get, name, str), _MAX_TEXT)


def _count(fields: Fields, name: str) -> int | None:
    return or_else(None, fields.integer, name, 0, _MAX_COUNT)
