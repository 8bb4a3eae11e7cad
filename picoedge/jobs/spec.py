"""What a daemon tells a worker process it starts, whatever the job."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from picoedge.mesh.transport.messages import Translation

# Names of version 1 of the protocol, when sessions were the only jobs.
VERSION_1 = Translation(
    kinds={
        "job-reserve": "session-take",
        "job-start": "session-start",
        "job-release": "session-close",
        "job-queued": "session-queued",
        "job-listens": "session-listens",
        "job-report": "session-report",
        "job-ended": "session-ended",
        "job-revoked": "session-revoked",
    },
    fields={
        "beat": {"state": {"queue_length": "waiting"}},
        "mesh-state": {"boards.*.report": {"queue_length": "waiting"}},
    },
)
INFERENCE = "inference"  # also the job of a message that names none: one of version 1


@dataclass(frozen=True)
class WorkerConfig:
    """A worker's job and its means on this board.

    `spec` is what the hub sent, which the daemon has checked: plain values that only the worker of
    that job understands. `pack` is the model's folder; None: pull it to `shelf`. The worker listens
    on `host`, within `ports` (the first and the last), reports on the memory page at `page`, and
    may take `memory_bytes` and `threads` (None: one per usable core). `daemons` says where this
    board reaches those of other boards, by key: it holds where the hub's addresses do not. `keep`:
    the worker stays with its weights when the job is over, for the next line on its stdin. It ends
    with the process `daemon`.
    """

    job: str
    spec: Mapping[str, Any]
    pack: Path | None
    shelf: Path
    host: str
    page: Path
    memory_bytes: int
    threads: int | None
    daemons: Mapping[str, str] = field(default_factory=dict)
    ports: Sequence[int] | None = None
    keep: bool = False
    daemon: int = 0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> WorkerConfig:
        """The inverse of `to_json`; the daemon wrote it, so nothing is checked."""
        folder = values["pack"]
        paths = {"shelf": Path(values["shelf"]), "page": Path(values["page"])}
        return cls(**{**values, **paths, "pack": None if folder is None else Path(folder)})

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
