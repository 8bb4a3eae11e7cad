"""The kinds of jobs a daemon can start: the worker of each, and the check of its specification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from picoedge.cluster.spec import spec_from_json
from picoedge.errors import AccessError, ProtocolError
from picoedge.jobs.spec import INFERENCE

if TYPE_CHECKING:
    from picoedge.mesh.identity.roster import Roster


class JobSpec(Protocol):
    """Fields of a job's specification that the daemon itself reads."""

    @property
    def id(self) -> str:
        """The group that runs the job."""

    @property
    def rank(self) -> int:
        """This board's rank in the group."""

    @property
    def members(self) -> Sequence[tuple[str, str]]:
        """Key and name of each board of the group, by rank; rank 0 is the hub."""

    @property
    def pack_id(self) -> str:
        """The pack that the worker needs."""

    @property
    def slice_key(self) -> object:
        """Key of the slice that stays loaded for a later job with an equal key; None: none."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the worker."""

    def describe(self) -> dict[str, Any]:
        """This board's work, for `picoedge ps`."""


@dataclass(frozen=True)
class JobKind:
    """A kind of job: `python -m module` runs its worker; `read_spec` checks what a hub sent.

    A job in the foreground has the board for itself, as long as the hub's connection lasts. One in
    the `background` belongs to a run: it lasts until it is released or ends by itself, and stops
    while a job in the foreground has the board.
    """

    module: str
    read_spec: Callable[[object], JobSpec]
    background: bool = False


JobKinds = Mapping[str, JobKind]
JOB_KINDS: JobKinds = {INFERENCE: JobKind("picoedge.cluster.worker", spec_from_json)}


def kind_of(kinds: JobKinds, body: Mapping[str, Any]) -> tuple[str, JobKind]:
    """The kind of job a message is about, and its name. Raises ProtocolError."""
    name = body.get("job", INFERENCE)
    if not isinstance(name, str) or name not in kinds:
        raise ProtocolError(f"a job of an unknown kind; this board knows {', '.join(kinds)}")
    return name, kinds[name]


def check_members(spec: JobSpec, hub: str, own: str, roster: Roster) -> None:
    """Check that the board `hub` asks for its own job, over boards that are let in.

    Raises ProtocolError, AccessError.
    """
    ranks = {key: rank for rank, (key, _) in enumerate(spec.members)}
    if ranks.get(hub) != 0 or ranks.get(own) != spec.rank:
        raise ProtocolError("the job has another hub than its sender, or this board another rank")
    refused = [name for key, name in spec.members if not roster.is_allowed(key)]
    if refused:
        raise AccessError(f"{refused[0]} is not let in here", "picoedge keys show")
