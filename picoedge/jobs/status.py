"""The boards of a cluster as this board's daemon sees them now, read from its answer.

What other boards say of themselves has passed through the daemon as they sent it: a field that is
not as it should be is taken for one that was not sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from picoedge.errors import ProtocolError
from picoedge.fields import Fields, or_else
from picoedge.jobs.progress_page import Work

if TYPE_CHECKING:
    from picoedge.mesh.transport.client import Client

STATE_S = 2.0
_MOST = 1 << 62  # of any count or figure
_LONGEST = 200  # characters of a text


@dataclass(frozen=True)
class BoardState:
    """One board. None and "" are what is not known; runs of shards are [first, behind the last]."""

    name: str
    key: str
    condition: str  # "alive", "slow", "dead", "left"
    address: str
    does: str = ""  # "free", "hub", "taken", or what its worker does
    how: str = ""  # its worker's threads: "running", "disk", "stopped"
    holder: str = ""  # the board whose session it serves
    model: str = ""
    attention: range | None = None
    ffn: range | None = None
    vocabulary: range | None = None
    used_bytes: int | None = None
    budget_bytes: int | None = None
    temperature_c: float | None = None
    throttled: bool = False
    waiting: int = 0  # sessions
    work: Work | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(self)
        for name in ("attention", "ffn", "vocabulary"):
            shards: range | None = values[name]
            values[name] = None if shards is None else [shards.start, shards.stop]
        return values


@dataclass(frozen=True)
class MeshState:
    """All boards of the cluster that this one knows of; this one first."""

    cluster: str
    boards: tuple[BoardState, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"cluster": self.cluster, "boards": [board.to_json() for board in self.boards]}


def ask_mesh(daemon: Client) -> MeshState:
    """The mesh now. Raises MeshError."""
    return read_mesh(daemon.ask("mesh-state", timeout_s=STATE_S))


def read_mesh(body: Mapping[str, Any]) -> MeshState:
    """The daemon's answer. Raises ProtocolError where it is none."""
    fields = Fields(body, "the state of the mesh")
    boards = fields.objects("boards")
    if not boards:
        raise ProtocolError("a state of the mesh without boards")
    first, *others = map(_board, boards)
    others.sort(key=lambda board: board.name)
    return MeshState(_text(fields, "cluster"), (first, *others))


def _board(fields: Fields) -> BoardState:
    report = or_else(Fields({}), fields.object, "report")
    addresses = or_else([""], fields.array, "addresses") or [""]
    return BoardState(
        _text(fields, "name"),
        _text(fields, "key"),
        _text(fields, "condition"),
        str(addresses[0]),
        does=_text(report, "does"),
        how=_text(report, "how"),
        holder=_text(report, "for"),
        model=_text(report, "model"),
        attention=or_else(None, report.span, "attention", _MOST),
        ffn=or_else(None, report.span, "ffn", _MOST),
        vocabulary=or_else(None, report.span, "vocabulary", _MOST),
        used_bytes=or_else(None, report.integer, "rss_bytes", 0, _MOST),
        budget_bytes=or_else(None, report.integer, "memory_bytes", 0, _MOST),
        temperature_c=or_else(None, report.number, "temperature_c", -_MOST, _MOST),
        throttled=or_else(False, report.get, "throttled", bool),
        waiting=or_else(0, report.integer, "queue_length", 0, _MOST),
        work=read_work(report.values),
    )


def _text(fields: Fields, name: str) -> str:
    return or_else("", fields.get, name, str)[:_LONGEST]


def read_work(report: Mapping[str, Any]) -> Work | None:
    """What a worker has done, of its daemon's report; None where that does not say."""
    try:
        work = Fields(report).object("work")
        seconds = (work.number(name, -_MOST, _MOST) for name in ("compute_s", "sync_s", "disk_s"))
        return Work(work.integer("tokens", 0, _MOST), *seconds)
    except ProtocolError:
        return None
