"""Measured figures of this board, kept 30 days in `probes.json` of picoedge's cache folder.

    {"storage": {KEY: {"at": unix seconds, FIGURE: number, …}}, "compute": {…}}

Anything else in the file is ignored: the cost is a new measurement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from picoedge.files import make_folder, replace_file

Figures = dict[str, float]

_NAME = "probes.json"
_KINDS = ("storage", "compute")
_KEPT_S = 30 * 86400.0
_MOST_BYTES = 256 << 10
_MOST_ENTRIES = 64  # of a kind
_SMALLEST, _LARGEST = 1e3, 1e12  # bytes a second that anything has; zero: not at all


def load(cache: Path, kind: str, key: str, names: tuple[str, ...], now: float) -> Figures | None:
    """The figures `names` measured under `key` within 30 days before `now`; None without them."""
    figures = _read_sound(cache / _NAME, now)[kind].get(key)
    if figures is None or set(figures) != {"at", *names}:
        return None
    return {name: figures[name] for name in names}


def save(cache: Path, kind: str, key: str, figures: Mapping[str, float], now: float) -> None:
    """Keep figures under `key`. A folder that cannot be written is no error: nothing is kept."""
    kinds = _read_sound(cache / _NAME, now)
    kinds[kind][key] = {**figures, "at": now}
    for entries in kinds.values():
        by_age = sorted(entries, key=lambda name: entries[name]["at"])
        for name in by_age[:-_MOST_ENTRIES]:
            del entries[name]
    with suppress(OSError):
        make_folder(cache)
        replace_file(cache / _NAME, json.dumps(kinds, indent=1).encode() + b"\n")


def _read_sound(file: Path, now: float) -> dict[str, dict[str, Figures]]:
    """The entries of the file that are sound and not too old."""
    values, kinds = None, {kind: dict[str, Figures]() for kind in _KINDS}
    with suppress(OSError, ValueError, RecursionError):
        if file.is_file() and file.stat().st_size <= _MOST_BYTES:  # a pipe would have us wait
            values = json.loads(file.read_bytes())
    for kind, sound in kinds.items():
        entries = values.get(kind) if isinstance(values, dict) else None
        for key, entry in entries.items() if isinstance(entries, dict) else ():
            if _is_sound(entry) and now - _KEPT_S <= entry["at"] <= now:
                sound[key] = {name: float(value) for name, value in entry.items()}
    return kinds


def _is_sound(entry: Any) -> bool:
    """An object of plain numbers, none of them absurd."""
    return (
        isinstance(entry, dict)
        and "at" in entry
        and all(
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (value == 0 or _SMALLEST <= value <= _LARGEST)
            for value in entry.values()
        )
    )
