"""A worker that computes nothing, for daemons under test: `python -m tiny_worker`.

It says that it listens on port 4711, and its job ends when the file named in its
specification exists.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from picoedge.daemon.job_kinds import JOB_KINDS, JobKind
from picoedge.errors import ProtocolError
from picoedge.jobs.progress_page import ProgressPage
from picoedge.jobs.spec import WorkerConfig

LOOK_S = 0.01
KEPT_BYTES = 100 << 20


@dataclass(frozen=True)
class TinySpec:
    """The specification of a job for this worker."""

    id: str
    rank: int
    members: list[list[str]]
    until: str
    pack_id: str = ""
    slice: str = ""  # what it keeps, if anything

    @property
    def slice_key(self) -> str | None:
        return self.slice or None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> dict[str, Any]:
        return {"model": f"tiny {self.id}"}


def read_spec(values: object) -> TinySpec:
    if not isinstance(values, dict) or values.keys() > {field.name for field in fields(TinySpec)}:
        raise ProtocolError("not a specification of the tiny worker")
    return TinySpec(**values)


KINDS = {
    **JOB_KINDS,
    "tiny": JobKind("tiny_worker", read_spec),
    "tiny training": JobKind("tiny_worker", read_spec, background=True),
}


def main() -> None:
    while line := sys.stdin.readline():
        config = WorkerConfig.from_json(json.loads(line))
        spec = read_spec(config.spec)
        ProgressPage(config.page).write("computing", 1, 1)
        print(json.dumps({"port": 4711}), flush=True)
        while not Path(spec.until).exists():
            time.sleep(LOOK_S)
        if not (config.keep and spec.slice):
            break
        print(json.dumps({"kept": KEPT_BYTES}), flush=True)


if __name__ == "__main__":
    main()
