"""Temperature of this board, and whether kernel or firmware slows it down, read from /sys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from picoedge.host.sysfs import SYS, file_int, file_text

READ_PERIOD_S = 1.0  # some sensors take a millisecond to answer
_LEAST_C, _MOST_C = -40.0, 150.0  # readings outside are of sensors that are not connected
_OF_PROCESSORS = ("cpufreq", "processor", "cpu")  # cooling devices that slow a processor
_PI_NOW = 0xF  # the flags of a Raspberry Pi's firmware that are true now


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
        """A reading that is at most READ_PERIOD_S old."""
        now_s = self._clock()
        if now_s - self._read_s >= READ_PERIOD_S:
            self._read_s, self._heat = now_s, read_heat(self._sys)
        return self._heat


def read_heat(sys: Path = SYS) -> Heat:
    """The readings under `sys`; sensors that cannot be read are left out."""
    zones = (zone / "temp" for zone in _entries(sys / "class/thermal", "thermal_zone*"))
    degrees = [value / 1000 for value in _numbers(zones)]
    real = [value for value in degrees if _LEAST_C < value < _MOST_C]
    throttled = _is_slowed(sys) or bool((firmware_flags(sys) or 0) & _PI_NOW)
    return Heat(max(real, default=None), throttled)


def firmware_flags(sys: Path = SYS) -> int | None:
    """Reasons why a Raspberry Pi's firmware throttles it; None on other boards.

    Bits 0 to 3 are now: under-voltage, clock capped, throttled, soft temperature limit; bits 16 to
    19 are the same since boot.
    """
    files = _entries(sys / "devices/platform", "soc*/soc*:firmware/get_throttled")
    return next(_numbers(files, base=16), None)


def _is_slowed(sys: Path) -> bool:
    """Whether the kernel slows a processor to cool it."""
    devices = _entries(sys / "class/thermal", "cooling_device*")
    slowing = (d for d in devices if file_text(d / "type").lower().startswith(_OF_PROCESSORS))
    return any(state > 0 for state in _numbers(device / "cur_state" for device in slowing))


def _entries(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _numbers(files: Iterable[Path], base: int = 10) -> Iterator[int]:
    values = (file_int(file, base) for file in files)
    return (value for value in values if value is not None)
