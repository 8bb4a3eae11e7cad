"""The configuration that a daemon gives a worker process, and the key of the slice it keeps."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.errors import ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.transport.messages import Translation
from picoedge.store.shards import Slice

if TYPE_CHECKING:
    from picoedge.engine.options import OpenOptions
    from picoedge.store.pack.reader import Pack

# Names of version 1 of the protocol, when sessions were the only jobs.
_REPORT_1 = {"state": "how", "holder": "for", "head_shards": "vocabulary"}  # of a board's report
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
        # In another board's beat it takes any `waiting` for a stalled disk, and the board for slow.
        "beat": {"report": {**_REPORT_1, "stalled_on": "waiting"}, "": {"report": "state"}},
        "mesh-state": {"boards.*.report": {**_REPORT_1, "queue_length": "waiting"}},
        "job-start": {
            "spec.ranks.*": {"head_shards": "vocabulary"},
            "spec": {"group": "session", "ranks": "seats"},
        },
        "job-queued": {"": {"group": "session", "holder": "held_by"}},
        "job-listens": {"": {"group": "session"}},
        "job-report": {"": {"group": "session"}},
        "job-ended": {"": {"group": "session"}},
    },
    told={"beat": {"report": {**_REPORT_1, "queue_length": "waiting"}, "": {"report": "state"}}},
)
MAX_SHARDS = 1 << 20  # of one kind in one layer
SESSION = re.compile(r"[0-9a-f]{16}")  # of a process that reserves boards: random
PACK_ID = re.compile(r"[0-9a-f]{16,128}")
_MAX_CONTEXT = 1 << 22  # as of a group: `cluster.spec.MAX_CONTEXT`
INFERENCE = "inference"  # also the job of a message that names none: one of version 1


@dataclass(frozen=True)
class WorkerConfig:
    """A worker's job and its means on this board.

    `spec` is what the hub sent, which the daemon has checked: plain values that only the worker of
    that job understands. `pack` is the model's folder; None: pull it to `shelf`. The worker listens
    on `host`, within `ports` (the first and the last), reports on the memory page at `page`, and
    may take `memory_bytes` and `threads` (None: one per usable core). `daemons` has addresses at
    which this board reaches the other boards' daemons, by key: they hold where the hub's do not.
    `keep`: the worker stays with its weights when the job is over, for the next line on its
    stdin. It ends with the process `daemon`.
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


def read_session(body: Mapping[str, Any]) -> str:
    """The session of a process that reserves a board; "" if it is of the previous version."""
    return Fields(body).text("session", pattern=SESSION) if "session" in body else ""


# -- kept slices ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SliceKey:
    """Key of a slice loaded for a group: a group with an equal key can go on with the slice."""

    pack_id: str
    part: Slice
    n_ctx: int
    kv_bits: int
    window_io: str
    kernels: str
    adapter: str = ""  # its hash; "": none

    def to_json(self) -> dict[str, Any]:
        """Plain values; `read_kept` reads them."""
        part = {**self.part.to_json(), "owns_head": self.part.owns_head}
        return {**dataclasses.asdict(self), "part": part}


def read_slice(fields: Fields, *, owns_head: bool) -> Slice:
    """The inverse of `Slice.to_json`. Raises ProtocolError."""
    kinds = ("attention", "ffn", "head_shards")
    attention, ffn, head_shards = (fields.span(kind, MAX_SHARDS) for kind in kinds)
    return Slice(attention, ffn, head_shards, owns_head)


def read_kept(kept: object, where: str) -> SliceKey | None:
    """The slice that a daemon says it keeps; None if that is malformed."""
    try:
        fields = Fields(kept, where)
        part = fields.object("part")
        return SliceKey(
            fields.text("pack_id", pattern=PACK_ID),
            read_slice(part, owns_head=part.get("owns_head", bool)),
            fields.integer("n_ctx", 1, _MAX_CONTEXT),
            fields.integer("kv_bits", 8, 16),
            fields.text("window_io", 16),
            fields.text("kernels", 16),
            fields.text("adapter", pattern=PACK_ID) if fields.values.get("adapter") else "",
        )
    except ProtocolError:
        return None


def loaded_for(kept: Mapping[int, SliceKey], pack: Pack, options: OpenOptions) -> dict[int, Slice]:
    """By the index of a board, the slice that it can go on with if the pack is opened like this."""
    adapter = options.adapter.shape.identity if options.adapter else ""
    kernels = options.kernels or ""
    wanted = (options.n_ctx, options.kv_bits, options.window_io, kernels, adapter)
    return {
        index: key.part
        for index, key in kept.items()
        if key.pack_id == pack.identity
        and (key.n_ctx, key.kv_bits, key.window_io, key.kernels, key.adapter) == wanted
    }
