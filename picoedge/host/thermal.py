"""How hot this board is, and whether it is slowed down for it, as the kernel tells under /sys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")
LOOK_S = 1.0  # readings are no older; some sensors take a millisecond to answer
_LEAST_C, _MOST_C = -40.0, 150.0  # others are sensors that are not there
_OF_PROCESSORS = ("cpufreq", "processor", "cpu")  # kinds of cooling devices that slow one down
_PI_NOW = 0xF  # bits of a Raspberry Pi's throttling that are of now; higher ones are of the past


@dataclass(frozen=True)
class Heat:
    """Degrees of the hottest sensor, None where there is none; whether the board is throttled."""

    temperature_c: float | None = None
    throttled: bool = False


class Thermometer:
    """Reads the board's sensors, at most once a second."""

    def __init__(self, sys: Path = SYS, clock: Callable[[], float] = time.monotonic) -> None:
        self._sys, self._clock = sys, clock
        self._read_s, self._heat = float("-inf"), Heat()

    def read(self) -> Heat:
        """How it is now, or was less than a second ago."""
        now_s = self._clock()
        if now_s - self._read_s >= LOOK_S:
            self._read_s, self._heat = now_s, read_heat(self._sys)
        return self._heat


def read_heat(sys: Path = SYS) -> Heat:
    """What the sensors under `sys` say; those that cannot be read say nothing."""
    zones = (zone / "temp" for zone in _entries(sys / "class/thermal", "thermal_zone*"))
    degrees = [value / 1000 for value in _numbers(zones)]
    real = [value for value in degrees if _LEAST_C < value < _MOST_C]
    return Heat(
        max(real, default=None), _is_slowed(sys) or bool((firmware_flags(sys) or 0) & _PI_NOW)
    )


def _is_slowed(sys: Path) -> bool:
    """Whether the kernel holds a processor back to cool it."""
    devices = _entries(sys / "class/thermal", "cooling_device*")
    slowing = (d for d in devices if _text(d / "type").lower().startswith(_OF_PROCESSORS))
    return any(state > 0 for state in _numbers(device / "cur_state" for device in slowing))


def firmware_flags(sys: Path = SYS) -> int | None:
    """`get_throttled` of a Raspberry Pi's firmware: bits 0-3 now, 16-19 since boot; else None."""
    files = _entries(sys / "devices/platform", "soc*/soc*:firmware/get_throttled")
    return next(_numbers(files, base=16), None)


def _entries(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _numbers(files: Iterable[Path], base: int = 10) -> Iterator[int]:
    for file in files:
        try:
            yield int(_text(file), base)
        except ValueError:
            continue


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
