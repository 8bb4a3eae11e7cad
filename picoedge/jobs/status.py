"""The boards of a cluster as this board's daemon sees them now, read from its answer.

What other boards say of themselves has passed through the daemon as they sent it: a field that is
not as it should be is taken for one that was not sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from picoedge.errors import ProtocolError
from picoedge.jobs.progress_page import Work

if TYPE_CHECKING:
    from picoedge.mesh.transport.client import Caller

STATE_S = 2.0
_MOST = 1 << 62
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


def ask_mesh(daemon: Caller) -> MeshState:
    """The mesh now. Raises MeshError."""
    return read_mesh(daemon.ask("mesh-state", timeout_s=STATE_S))


def read_mesh(body: Mapping[str, Any]) -> MeshState:
    """The daemon's answer. Raises ProtocolError where it is none."""
    boards = body.get("boards")
    right = isinstance(boards, list) and all(isinstance(each, dict) for each in boards)
    if not boards or not right:
        raise ProtocolError("a state of the mesh without boards")
    first, *others = (_board(each) for each in boards)
    others.sort(key=lambda board: board.name)
    return MeshState(_text(body, "cluster"), (first, *others))


def _board(told: Mapping[str, Any]) -> BoardState:
    report, addresses = _object(told, "report"), told.get("addresses")
    return BoardState(
        _text(told, "name"),
        _text(told, "key"),
        _text(told, "condition"),
        str(addresses[0]) if isinstance(addresses, list) and addresses else "",
        does=_text(report, "does"),
        how=_text(report, "how"),
        holder=_text(report, "for"),
        model=_text(report, "model"),
        attention=_run(report, "attention"),
        ffn=_run(report, "ffn"),
        vocabulary=_run(report, "vocabulary"),
        used_bytes=_count(report, "rss_bytes"),
        budget_bytes=_count(report, "memory_bytes"),
        temperature_c=_number(report, "temperature_c"),
        throttled=report.get("throttled") is True,
        waiting=_count(report, "waiting") or 0,
        work=read_work(report),
    )


def read_work(report: Mapping[str, Any]) -> Work | None:
    """What a worker has done, of its daemon's report; None where that does not say."""
    told = _object(report, "work")
    tokens = _count(told, "tokens")
    compute, sync, disk = (_number(told, name) for name in ("compute_s", "sync_s", "disk_s"))
    if tokens is None or compute is None or sync is None or disk is None:
        return None
    return Work(tokens, compute, sync, disk)


def _object(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = told.get(name)
    return value if isinstance(value, dict) else {}


def _text(told: Mapping[str, Any], name: str) -> str:
    value = told.get(name)
    return value[:_LONGEST] if isinstance(value, str) else ""


def _count(told: Mapping[str, Any], name: str) -> int | None:
    value = told.get(name)
    return value if type(value) is int and 0 <= value < _MOST else None


def _number(told: Mapping[str, Any], name: str) -> float | None:
    value = told.get(name)
    right = type(value) in (int, float) and math.isfinite(value) and abs(value) < _MOST  # type: ignore[arg-type]
    return float(value) if right else None  # type: ignore[arg-type]


def _run(told: Mapping[str, Any], name: str) -> range | None:
    value = told.get(name)
    if not isinstance(value, list) or len(value) != 2:
        return None
    if not all(type(end) is int and 0 <= end < _MOST for end in value):
        return None
    return range(*value)
