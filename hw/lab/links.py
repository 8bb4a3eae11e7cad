"""How a link behaves, and how that is written: `1ms`, `300mbit`, `1%`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hw.lab.errors import LabError

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BYTES = {"bit": 1 / 8, "kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8}
_NUMBER = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*([a-z%]*)\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class LinkShape:
    """One way of a link.

    `delay_s` each way; up to `jitter_s` more, evenly spread, never out of order; `loss` is the part
    of frames lost; `rate_bytes_per_s` None is as fast as it goes, and what has waited for more than
    `queue_s` of it is dropped, as a full switch does.
    """

    delay_s: float = 0.0
    rate_bytes_per_s: float | None = None
    jitter_s: float = 0.0
    loss: float = 0.0
    queue_s: float = 0.02

    def __post_init__(self) -> None:
        if min(self.delay_s, self.jitter_s, self.queue_s) < 0 or not 0 <= self.loss <= 1:
            raise LabError(f"no link is like that: {self}")
        if self.rate_bytes_per_s is not None and not self.rate_bytes_per_s > 0:
            raise LabError("a link's rate is above 0", "cut it instead")


def _parse(text: str, units: dict[str, float], example: str) -> float:
    match = _NUMBER.match(text)
    if match is None or match[2].lower() not in units:
        raise LabError(f"not understood: {text!r}", f"write it like {example}")
    return float(match[1]) * units[match[2].lower()]


def parse_seconds(text: str) -> float:
    """Seconds meant by `1ms`, `250us`, `0.1s`. Raises LabError."""
    return _parse(text, _SECONDS, "1ms or 250us")


def parse_rate(text: str) -> float:
    """Bytes a second meant by `300mbit`, `1gbit`. Raises LabError."""
    return _parse(text, _BYTES, "300mbit or 1gbit")


def parse_part(text: str) -> float:
    """The part meant by `1%` or `0.01`. Raises LabError."""
    return _parse(text, {"": 1.0, "%": 0.01}, "1% or 0.01")
