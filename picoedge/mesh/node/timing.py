"""How often boards tell each other that they are there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds between heartbeats, of silence that is death, and between looks for lost boards."""

    beat_s: float = 0.25
    silence_s: float = 1.0
    seek_s: float = 1.0
