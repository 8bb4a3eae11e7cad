"""What a daemon has a worker do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picoedge.cluster.spec import SessionSpec, spec_from_json


@dataclass(frozen=True)
class Order:
    """Where the slice is, what it may take, where to listen and to say how far it is.

    The hub's `spec` has been checked.
    """

    spec: SessionSpec
    pack: Path | None  # where it is; None: it is to be put on the shelf
    shelf: Path
    host: str
    page: Path
    memory_bytes: int
    threads: int | None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Order:
        """From plain values."""
        return cls(
            spec_from_json(values["spec"]),
            Path(values["pack"]) if values["pack"] else None,
            Path(values["shelf"]),
            values["host"],
            Path(values["page"]),
            values["memory_bytes"],
            values["threads"],
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them."""
        return {
            "spec": self.spec.to_json(),
            "pack": str(self.pack) if self.pack else None,
            "shelf": str(self.shelf),
            "host": self.host,
            "page": str(self.page),
            "memory_bytes": self.memory_bytes,
            "threads": self.threads,
        }
